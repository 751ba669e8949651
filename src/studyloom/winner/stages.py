"""The stages of a run: the search, the re-evaluation of its best trials, the final trainings.

The best of 40 trials is partly luck: its value is a maximum over noise. So the answer is made in
three steps:

1. The candidates are the best few trials of the search, and the baseline to compare them with. Each
   is trained again on the same fresh seeds and validation parts. The drop from the value in the
   search to the mean on fresh seeds is the selection gap.
2. The candidate with the best mean wins; if there is a rule, among those that satisfy it.
3. Winner and baseline are trained on all training data, and tested once.

The trainings of each stage are a study of their own in the same database. Workers share them, and
they survive crashes as the search does.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from optuna.trial import FrozenTrial

from studyloom.config.schema import WinnerSection
from studyloom.data.split import Fold
from studyloom.data.training_data import TrainingData
from studyloom.definition.definition import Definition
from studyloom.definition.objective import Attempt
from studyloom.definition.rule import Rule
from studyloom.definition.scale import FACTORS, learning_rates, present
from studyloom.errors import DefinitionError, NoWinner
from studyloom.seeds import derive
from studyloom.space.tree import Point
from studyloom.storage.attributes import BASELINE, EPOCHS, KEPT, REUSED, SLOT
from studyloom.study.command_record import CommandRecord, store_stage
from studyloom.study.early_end import ending
from studyloom.study.failures import reason_of
from studyloom.study.opening import create_study
from studyloom.study.stage import Stage
from studyloom.study.stopping import Stop
from studyloom.study.stored_study import REEVALUATION, RETRAINING, StageName
from studyloom.training.checkpoint import load_weights
from studyloom.winner.result import Result, belongs_to
from studyloom.winner.trainings import (
    CandidateTrainings,
    Training,
    by_training,
    earlier_trainings,
    folder_name,
    kept_epoch,
)


@dataclass(frozen=True)
class Origin:
    """The trial that a candidate comes from, and the factor on its learning rate."""

    trial: int
    factor: float = 1.0

    @property
    def number(self) -> int:
        """The candidate in stored rows: its trial, or below 0 at another learning rate."""
        if self.factor == 1:
            return self.trial
        return -1 - len(FACTORS) * self.trial - FACTORS.index(self.factor)

    @classmethod
    def of(cls, number: int) -> "Origin":
        """Reads the number of a candidate in stored rows."""
        if number >= 0:
            return cls(number)
        trial, place = divmod(-number - 1, len(FACTORS))
        return cls(trial, FACTORS[place])


@dataclass(frozen=True)
class TrainingStage(Stage):
    """A stage after the search, whose trials train candidates."""

    source: CandidateTrainings

    @property
    def trainings(self) -> CandidateTrainings:
        """Where the trials come from."""
        return self.source

    @property
    def trained(self) -> dict[Training, FrozenTrial]:
        """The ended trials; one without a value has failed."""
        return by_training(trial for trial in self.stored.trials() if trial.state.is_finished())


@dataclass
class Plan:
    """The stages of a run; each is known once those before it have ended."""

    search: Stage
    definition: Definition
    data: TrainingData
    url: str
    run_dir: Path
    settings: WinnerSection
    _opened: list[TrainingStage] = field(default_factory=list)  # after the search

    def __iter__(self) -> Iterator[Stage]:
        """Yields the stages up to the first that has not ended yet."""
        yield self.search
        if self.search.todo() or not self.settings.enabled or not self.candidates:
            return
        if self.reevaluates:
            yield self.reevaluation
            if self.reevaluation.todo() or not self.eligible:
                return
        if self.definition.tested:
            yield self.retraining

    def later(self) -> list[TrainingStage]:
        """Returns the stages after the search, up to the first that has not ended yet."""
        return [stage for stage in self if isinstance(stage, TrainingStage)]

    @property
    def reevaluates(self) -> bool:
        """Whether there is a re-evaluation; a single candidate that will be tested needs none."""
        return not self.definition.tested or len(self.candidates) > 1

    @property
    def last(self) -> TrainingStage:
        """The stage after which there is a winner."""
        return self.retraining if self.definition.tested else self.reevaluation

    @property
    def current(self) -> Stage:
        """The first stage that has not ended, or the last that is known."""
        *_, stage = self
        return stage

    def command_record(self, *, compresses: bool) -> CommandRecord:
        """Returns the record of a command that works on this plan."""
        settings, definition = self.settings, self.definition
        per_hour = definition.config.cost.per_hour
        return CommandRecord(
            trials=self.search.trials,
            judged=settings.enabled,
            tested=bool(definition.tested),
            top=settings.top + (len(FACTORS) if definition.scale else 0),
            seeds=settings.seeds,
            compresses=compresses,
            per_hour=None if per_hour is None else float(per_hour),
        )

    def close(self) -> None:
        """Closes the connections; the last one of a SQLite file removes its two side files."""
        for stage in (self.search, *self._opened):
            stage.stored.close()

    @property
    def trials(self) -> int:
        """How many trials the winner is chosen from: fewer than the budget if the search ended."""
        ended = ending(self.search.stored, self.search.trials)
        return self.search.trials if ended is None else ended.begun

    def reconcile(self) -> bool:
        """Mends what another program changed in ledgers or trials; says if there was anything.

        Raises:
            StorageError: A person must decide how.
        """
        found = [stage.stored.reconcile(stage.trials) for stage in (self.search, *self._opened)]
        if not any(found):
            return False
        for stage in (self.search, *self._opened):
            stage.stored.storage.forget(stage.stored.ledger.study_id)
        for name in ("ranked", "candidates", "winner", "reevaluation", "retraining", "rule"):
            self.__dict__.pop(name, None)  # they were found from the trials of before
        return True

    def is_done(self) -> bool:
        """Whether all stages have ended and there is a winner, to be tested if that is possible."""
        stage = self.current
        return self._is_last(stage) and not stage.todo() and bool(self.eligible)

    def _is_last(self, stage: Stage) -> bool:
        """Whether the winner is known once a stage has ended.

        By the title: `last` needs the winner, which is not to be chosen before all are judged.
        """
        return stage.title == (RETRAINING if self.definition.tested else REEVALUATION)

    @property
    def fresh_values(self) -> dict[int, list[float]]:
        """The values of the re-evaluation, by candidate and seed; empty if there is none."""
        return self.values(self.reevaluation) if self.reevaluates else {}

    def values(self, stage: TrainingStage) -> dict[int, list[float]]:
        """Returns a value per seed for each candidate of which no training failed."""
        known: dict[int, list[float]] = {}
        for (candidate, _), trial in sorted(stage.trained.items()):
            if trial.value is not None:
                known.setdefault(candidate, []).append(trial.value)
        return {n: values for n, values in known.items() if len(values) == stage.trainings.seeds}

    def reused(self) -> dict[str, tuple[int, int]]:
        """Returns how many trainings of each later stage were reused from earlier ones, of all."""
        counts = {}
        for stage in self.later():
            reused = sum(REUSED in trial.user_attrs for trial in stage.stored.trials())
            counts[stage.title] = reused, stage.trials
        return counts

    def todo(self) -> int:
        """Returns how many trainings are left at most, in this stage and those to come."""
        stage = self.current
        trials = stage.todo()
        if not trials:
            return 0
        ends = not self.settings.enabled or self._is_last(stage)
        return trials if ends else trials + (self.settings.top + 3) * self.settings.seeds

    @cached_property
    def rule(self) -> Rule:
        """How the winner is chosen: as the config says, or else by the study's default."""
        return self.definition.rule or self.search.stored.default_rule()

    @cached_property
    def ranked(self) -> list[FrozenTrial]:
        """The trials that may win, the best first; only those of this run's budget."""
        ranked = self.search.stored.ranked(self.rule)
        return [trial for trial in ranked if trial.user_attrs.get(SLOT, 0) < self.search.trials]

    @cached_property
    def candidates(self) -> dict[int, Point]:
        """The best trials of the search and the baseline, by number.

        The baseline is there to compare with, even if it cannot win. At the target size of a
        `scale`, the best trial has neighbours, whose numbers `Origin` reads.
        """
        baseline = {t.number: t for t in self.search.stored.feasible() if BASELINE in t.user_attrs}
        chosen = {trial.number: trial for trial in self.ranked[: self.settings.top]}
        if chosen:
            chosen |= baseline
        points = {number: self._point_of(chosen[number]) for number in sorted(chosen)}
        if (scale := self.definition.scale) is None or not scale.target or not points:
            return points
        best = self.ranked[0].number
        return points | self._neighbours(best, points[best])

    def _neighbours(self, best: int, point: Point) -> dict[int, Point]:
        """Returns a candidate at other learning rates, by numbers below 0."""
        rates = learning_rates(self.definition.at(point))
        return {
            Origin(best, factor).number: replace(
                point, values=point.values | {key: rate * factor for key, rate in rates.items()}
            )
            for factor in (FACTORS if rates else ())
        }

    @property
    def contenders(self) -> list[int]:
        """The numbers of the candidates that may win."""
        ranked = {trial.number for trial in self.ranked}
        return [number for number in self.candidates if Origin.of(number).trial in ranked]

    @property
    def eligible(self) -> list[int]:
        """The numbers of the contenders, after a re-evaluation only of those it has values of."""
        contenders = self.contenders
        evaluated = self.fresh_values if self.reevaluates else self.candidates
        return [number for number in evaluated if number in contenders]

    def _point_of(self, trial: FrozenTrial) -> Point:
        """Returns the point of a trial; if patience or keep=best chose its epochs, with so many.

        What they chose counts as chosen, as a parameter does: it is judged on fresh seeds without
        another choice there, and the training on all data, which has no validation part of its own,
        is as long. The schedule remains that of all epochs.
        """
        point = self.at_target(self.definition.space.at(trial.params))
        train = self.definition.at(point).train if self.definition.trains_networks else None
        if train is None or (train.patience, train.keep) == (None, "last"):
            return point
        until = kept_epoch(trial.user_attrs.get(EPOCHS, {}), train.keep, self.definition.metric)
        pinned = {"train.until": until, "train.patience": None, "train.keep": "last"}
        return replace(point, values=point.values | pinned)

    def at_target(self, point: Point) -> Point:
        """Returns a point of the search at the size of the winner."""
        if (scale := self.definition.scale) is None:
            return point
        sizes = present(scale.target, self.definition.at(point))
        return replace(point, values=point.values | sizes)

    def baseline(self) -> int | None:
        """Returns the number of the baseline, if it is a candidate."""
        trials = self.search.stored.trials()
        numbers = (t.number for t in trials if BASELINE in t.user_attrs)
        return next((number for number in numbers if number in self.candidates), None)

    @cached_property
    def winner(self) -> int:
        """The number of the eligible candidate that is best on fresh seeds; the earlier of a tie.

        If no candidate satisfies the rule on fresh seeds, the one with the best mean wins.
        """
        known = {number: self.known_values(number) for number in self.eligible}
        metric = self.definition.metric
        satisfying = [number for number in known if self.rule.holds(known[number])]
        if not satisfying:
            return max(known, key=lambda number: metric.sign * known[number][metric.name])
        return min(
            satisfying,
            key=lambda n: (self.rule.rank(known[n]), -metric.sign * known[n][metric.name], n),
        )

    def known_values(self, number: int) -> dict[str, float]:
        """Returns the values of a candidate by name, for the rule.

        The mean on fresh seeds, if there is one, takes the place of the value in the search.
        """
        stored = self.search.stored
        searched = Origin.of(number).trial
        trial = next(trial for trial in stored.feasible() if trial.number == searched)
        fresh = self.fresh_values.get(number)
        return stored.values_by_name(trial) | (
            {} if fresh is None else {stored.metric: fmean(fresh)}
        )

    @cached_property
    def reevaluation(self) -> TrainingStage:
        """Every candidate on fresh seeds and validation parts of the size used in the search.

        In time order only the last part comes after all the others, so that it is always that one.
        """
        # Without a retraining, or if it only repeats this, the answer has these networks.
        kept = not self.definition.tested or self.repeats
        weights = self.run_dir / "winner" if kept else None
        return self._make_stage(REEVALUATION, self.candidates, self.judging_fold, weights)

    def judging_fold(self, seed: int) -> Fold:
        """Returns a division of the data that the search has not used, as large as one of its."""
        split, count = self.data.split, self.definition.config.objective.folds
        assert split is not None
        fresh = derive(self.definition.seed, seed, 0, 1)
        return split.folds(count, self.data.source.validation, fresh)[-1]

    @cached_property
    def repeats(self) -> bool:
        """Whether the final training has the seeds and the examples of the re-evaluation.

        So it is if the data are a loop's own, or have a validation part of their own.
        """
        split = self.data.split
        return split is None or len(self.judging_fold(0)[0]) == len(split)

    @cached_property
    def retraining(self) -> TrainingStage:
        """Winner and baseline on all training data.

        The validation part is one fifth of that data: its value only shows that the training works.
        One of its own, `data.valid`, stays what it is.
        """
        split = self.data.split
        nothing = torch.arange(0)  # a loop that names no data
        fold = (nothing, nothing) if split is None else split.whole()
        last = (self.winner, self.baseline())
        finalists = {
            number: self.candidates[number] for number in self.candidates if number in last
        }
        return self._make_stage(RETRAINING, finalists, lambda seed: fold, self.run_dir / "winner")

    def _make_stage(
        self,
        title: str,
        candidates: Mapping[int, Point],
        fold: Callable[[int], Fold],
        weights: Path | None,
    ) -> TrainingStage:
        """Makes the study of a stage, or opens it; settings that change its trainings name it."""
        search, settings = self.search, self.settings
        study, top, seeds = search.stored.name, settings.top, settings.seeds
        name = StageName(study, title, search.trials, top, seeds)
        if self.rule != Rule(search.stored.goals[0]):
            name = name.with_detail(str(self.rule))  # other candidates, other trainings
        if self.definition.scale is not None:
            name = name.with_detail(str(self.definition.scale))
        code = search.stored.code()
        if search.stored.code_changes():  # other code, other trainings
            digest = hashlib.sha256(repr(sorted(code.items())).encode()).hexdigest()
            name = name.with_detail(f"code {digest[:8]}")
        known = earlier_trainings(search.stored, title, str(name), weights, needed=False)
        if title == RETRAINING and self.repeats:
            judged = earlier_trainings(search.stored, REEVALUATION, str(name), weights, needed=True)
            known = {**judged, **known}
        trainings = CandidateTrainings(self.definition, candidates, seeds, fold, known)
        identity = {"candidates": [*candidates], "seeds": seeds, **code}
        trials = len(trainings.trainings)
        make = partial(
            create_study,
            self.url,
            definition=identity,
            trials=trials,
            deadline=self.definition.config.storage.deadline,
            goals=[self.definition.metric],
            wait=True,
        )
        try:
            stored = make(str(name))
        except DefinitionError:  # of before the baseline, or a trial that was deleted, was redone
            name = name.with_detail(f"of {', '.join(map(str, candidates))}")
            stored = make(str(name))
        stored.wait_less(search.stored.stopping)
        if weights is not None:
            weights = weights / folder_name(stored.name)
        store_stage(search.stored, title, stored.name)
        stage = TrainingStage(title, stored, trainings, trials, weights)
        self._opened.append(stage)
        return stage

    def load_or_train(
        self, stage: TrainingStage, candidate: int, seed: int
    ) -> dict[str, Any] | None:
        """Loads the network of a training; trains it again if another host keeps it.

        Returns:
            the weights of a network, or the states of a loop; None if the loop has kept nothing.

        Raises:
            NoWinner: that training has failed.
        """
        assert stage.weights is not None
        trial = stage.trained[candidate, seed]
        if trial.value is None:
            reason = reason_of(trial) or trial.state.name
            raise NoWinner(f"trial {candidate} could not be trained on all data: {reason}")
        try:
            return load_weights(stage.weights / f"trial-{trial.number}.pt")
        except (OSError, ValueError):
            if not self.definition.tested and KEPT not in trial.user_attrs:
                return None
        attempt = Attempt(stage=stage.title)
        objective = stage.trainings.train_again(candidate, seed, self.data, trial.number, attempt)
        objective.run(lambda step: None, Stop())
        return objective.weights()


def is_result_of(answer: Result, plan: Plan) -> bool:
    """Whether an answer comes from the final stage of this very plan.

    The name of the stage has the budget and the rule; what was judged has the question and seeds.
    """
    fresh = plan.fresh_values
    return (
        answer.stage == plan.last.stored.name
        and belongs_to(answer, plan.search.stored)
        and answer.trials == plan.trials  # else the search had ended, and went on since
        and all(
            [*row.values] == fresh.get(Origin(row.trial, row.factor).number, [])
            for row in answer.candidates
        )
    )
