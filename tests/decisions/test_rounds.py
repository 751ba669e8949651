"""Rounds: the decisions of a search do not depend on who ends when, nor on who dies."""

import random
from dataclasses import dataclass, field, replace

import pytest
from optuna.trial import TrialState, create_trial
from promoting import standing

from studyloom.decisions.asha import AshaPruner
from studyloom.decisions.extrapolation import mark_worse_than_complete
from studyloom.decisions.rounds import RoundOrder
from studyloom.metrics import ACCURACY, ObjectiveValue
from studyloom.seeds import derive
from studyloom.storage.attributes import FAILURE, PAUSED, SEGMENTS
from studyloom.storage.standings import DONE, HELD, OPEN, OWN, UNCLAIMED, Fault, Segment
from studyloom.storage.trial_buffer import as_pruned

EPOCHS, TRIALS = 9, 14  # the last epoch is at a rung of the order
COSTS = (ACCURACY, ObjectiveValue("parameters", "minimize"))


@dataclass
class Trial:
    """A trial in a slot, and who holds it."""

    number: int
    segments: list = field(default_factory=list)
    value: float | None = None  # of its hyperparameter, once it is stored
    epochs: int = 0
    rungs: list = field(default_factory=list)
    state: TrialState = TrialState.RUNNING
    holder: int | None = None
    failed: bool = False

    @property
    def curve(self):
        return {e: derive(int(self.value * 1e6), e) % 97 / 97 for e in range(1, self.epochs + 1)}

    def frozen(self, several):
        failure = {FAILURE: "diverged"} if self.failed else {}
        paused = self.rungs[-1] if self.rungs and self.epochs == self.rungs[-1] else None
        ended = self.state.is_finished()
        value = self.curve[max(self.curve)] if ended and not several and not self.failed else None
        complete = self.state == TrialState.COMPLETE
        trial = create_trial(
            state=self.state,
            value=value,
            values=[self.curve[self.epochs], self.value] if several and complete else None,
            user_attrs={SEGMENTS: self.segments, PAUSED: paused, **failure},
            intermediate_values=self.curve if self.value is not None else {},
        )
        trial.number = self.number
        if self.failed:
            trial.set_constraint("diverged", 1.0)
        elif several and self.state == TrialState.PRUNED:
            mark_worse_than_complete(trial, trial.set_constraint)
        return trial if several else as_pruned(trial)


class Rounds:
    """A search whose workers claim, train, pause and die in a random order."""

    fails_above = 0.9  # trials of larger hyperparameters fail in their fourth epoch

    def __init__(self, order, workers, seed, deaths=0.0, several=False):
        self.order, self.workers, self.several = order, workers, several
        self.fate, self.deaths, self.most = random.Random(seed), deaths, 0
        self.trials, self.ending, self.halted = {}, set(), False

    def standings(self, me):
        for slot in range(TRIALS):
            if (trial := self.trials.get(slot)) is None:
                yield standing(slot, UNCLAIMED, order=self.order, exempt=slot == 0)
                continue
            held = {None: OPEN, me: OWN}.get(trial.holder, HELD)
            values = [*trial.curve.values()] if trial.epochs else []
            yield replace(
                standing(
                    slot,
                    DONE if trial.state.is_finished() else held,
                    *values,
                    order=self.order,
                    exempt=slot == 0,
                    parameters=trial.value or 0.0,
                ),
                paused=max(trial.rungs, default=None),
                segments=[Segment(*segment) for segment in trial.segments],
                failure=Fault("error", "a bug") if trial.failed else None,
            )

    def run(self):
        while sum(trial.state.is_finished() for trial in self.trials.values()) < TRIALS:
            if self.order.find_halt_reason([*self.standings(None)]) is not None:
                self.halted = True
                break
            self.step(self.fate.randrange(self.workers))
        return [
            (trial.number, trial.segments, trial.value, trial.state, trial.epochs, trial.rungs)
            for trial in self.trials.values()
        ]

    def step(self, me):
        """Has a worker do the next thing."""
        held = next((trial for trial in self.trials.values() if trial.holder == me), None)
        if held is None:
            return self.claim(me)
        if self.fate.random() < self.deaths:
            held.holder = None
            return self.ending.discard(held.number)
        if held.number in self.ending:
            held.state, held.holder = TrialState.PRUNED, None
        elif held.segments[-1][1] is None:
            self.draw(held)
        elif held.epochs == EPOCHS or held.failed:
            held.state = TrialState.PRUNED if held.failed else TrialState.COMPLETE
            held.holder = None
        elif self.pauses_at_rung(held):
            held.holder = None
        else:
            before, held.epochs = held.epochs, held.epochs + 1
            if held.value > self.fails_above and held.epochs == 4:
                held.failed = True
            elif held.epochs < EPOCHS and self.order.pauses_at(held.number, before, held.epochs):
                held.rungs.append(held.epochs)
        return None

    @staticmethod
    def pauses_at_rung(trial):
        return trial.epochs in trial.rungs and trial.epochs > (trial.segments[-1][1] or 0)

    def claim(self, me):
        standings = [*self.standings(me)]
        chosen = self.order.choose(standings)
        assert self.order.choose(self.fate.sample(standings, TRIALS)) == chosen, "in any order"
        if chosen is None or standings[chosen.slot].state == HELD:
            return
        trial = self.trials.setdefault(chosen.slot, Trial(len(self.trials)))
        assert trial.number == chosen.slot
        trial.holder = me
        if chosen.ends_pruned:
            self.ending.add(trial.number)
        else:
            trial.segments = [tuple(segment) for segment in chosen.segments]
        self.most = max(self.most, sum(t.holder is not None for t in self.trials.values()))

    def draw(self, trial):
        """Chooses a configuration from all that the sampler sees."""
        segment = Segment(*trial.segments[-1])
        view = self.order.view_study(SampledStudy(self), segment)
        visible = [
            (seen.number, seen.state, seen.values, seen.intermediate_values, seen.constraints)
            for seen in view._storage.get_all_trials(0)
        ]
        if trial.number == 0:
            trial.value = 0.5
        else:
            trial.value = random.Random(repr(visible)).random()
        trial.segments = [(number, start or 0) for number, start in trial.segments]


class SampledStudy:
    """The study of such a search and its storage, as a sampler gets them."""

    def __init__(self, search):
        self.search, self._storage = search, self
        self.directions = ["maximize", "minimize"][: 1 + search.several]

    def get_all_trials(self, study_id, deepcopy):
        return [trial.frozen(self.search.several) for trial in self.search.trials.values()]


HISTORIES = ((1, 0.1), (2, 0.0), (4, 0.2), (9, 0.05))  # how many workers, and how often they die
MANY = pytest.param(HISTORIES, 10, marks=pytest.mark.nightly)  # and seeds for each of them


@pytest.mark.parametrize(("histories", "seeds"), [(HISTORIES[2:3], 1), MANY])
@pytest.mark.parametrize("objectives", [(ACCURACY,), COSTS], ids=["one", "two"])
@pytest.mark.parametrize("pruner", [AshaPruner(1), AshaPruner(2, brackets=2), AshaPruner(1000)])
def test_trials_are_the_same_for_any_workers_order_and_kills(objectives, pruner, histories, seeds):
    order = RoundOrder(pruner.make_order(objectives), 4)
    several = len(objectives) > 1
    expected = Rounds(order, 1, 0, several=several).run()
    assert {state for _, _, _, state, _, _ in expected} >= {TrialState.COMPLETE}
    for seed in range(seeds):
        for workers, deaths in histories:
            assert Rounds(order, workers, seed, deaths, several).run() == expected


@pytest.mark.parametrize(("histories", "seeds"), [(HISTORIES[2:3], 1), MANY])
def test_where_a_search_halts_is_the_same_for_any_workers(monkeypatch, histories, seeds):
    monkeypatch.setattr(Rounds, "fails_above", 0.55)
    halted = set()
    for most in (1, 2, 3, 4):
        order = RoundOrder(AshaPruner(1000).make_order((ACCURACY,)), 2, most)
        first = Rounds(order, 1, 0)
        expected = first.run()
        halted.add(first.halted)
        for seed in range(seeds):
            for workers, deaths in histories:
                other = Rounds(order, workers, seed, deaths)
                assert other.run() == expected
                assert other.halted == first.halted
    assert halted == {True, False}


def test_a_resumed_search_halts_only_with_a_later_failure():
    faults = [Fault("error", "a bug")] * 4
    order = AshaPruner(1000).make_order((ACCURACY,))
    trials = [
        replace(standing(slot, DONE, 0.1, order=order), segments=[Segment(slot, 0)], failure=fault)
        for slot, fault in enumerate(faults)
    ]
    waiting = [standing(slot, UNCLAIMED, order=order) for slot in range(4, 9)]
    standings = [*trials, *waiting]
    assert RoundOrder(order, 1, 3).find_halt_reason(standings) == "a bug"
    assert RoundOrder(order, 1, 3, halted_at=4).find_halt_reason(standings) is None
    assert RoundOrder(order, 1, 4).find_halt_reason(standings) is None
