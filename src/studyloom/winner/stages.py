"""What a run does, one after the other: the search, the re-evaluation of its best trials, and the final trainings.

A best trial is a maximum over noise, so that its value flatters it. The best few and the baseline are judged once more,
each on the same fresh seeds and validation parts; the one with the best mean wins. It and the baseline are then trained
on all training data. These trainings are studies of their own in the same database: workers share them, and they
survive what the search survives.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean

import torch
from optuna.trial import FrozenTrial, TrialState
from torch import Tensor

from studyloom.config.schema import WinnerSection
from studyloom.data.folds import make_folds
from studyloom.data.training_data import TrainingData
from studyloom.question.question import Question
from studyloom.question.rule import Rule
from studyloom.seeds import derive
from studyloom.space.tree import Point
from studyloom.storage.attributes import BASELINE, SLOT
from studyloom.study.stored_study import StoredStudy, create_study
from studyloom.study.worker import TrialSource
from studyloom.winner.candidates import CandidateTrainings


@dataclass(frozen=True)
class Stage:
    """A study that is a part of a run. weights: the folder for the trained networks, if they are wanted."""

    title: str
    stored: StoredStudy
    asked: TrialSource
    trials: int
    weights: Path | None = None

    def todo(self) -> int:
        return self.stored.ledger.todo(self.trials)


@dataclass
class Plan:
    """The stages of a run, each known when those before it have come to their end."""

    search: Stage
    question: Question
    data: TrainingData
    url: str
    run_dir: Path
    settings: WinnerSection
    _known: dict[str, Stage] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Stage]:
        """The stages up to the first that is not at its end yet."""
        yield self.search
        if self.search.todo() or not self.settings.enabled or not self.candidates:
            return
        if self.judges:
            yield self.reevaluation
            if self.reevaluation.todo() or not self.contenders:
                return
        if self.question.tested:
            yield self.retraining

    @property
    def judges(self) -> bool:
        """Whether the candidates are judged again; a single one is not, if there is a test to come."""
        return len(self.candidates) > 1 or not self.question.tested

    @property
    def last(self) -> Stage:
        """The stage after which there is a winner."""
        return self.retraining if self.question.tested else self.reevaluation

    @property
    def current(self) -> Stage:
        *_, last = self
        return last

    def close(self) -> None:
        """Closes the databases' connections: the last of a SQLite file takes its two side files away."""
        for stage in (self.search, *self._known.values()):
            stage.stored.close()

    def is_done(self) -> bool:
        """Whether there is a winner, to be tested where that can be."""
        return self._ends(self.current) and not self.current.todo() and bool(self.contenders)

    def _ends(self, stage: Stage) -> bool:
        return stage is not self.search and stage is self.last

    @property
    def judged(self) -> dict[int, list[float]]:
        """What the re-evaluation gave, by candidate and seed; empty where there was none."""
        return self.values(self.reevaluation) if self.judges else {}

    def values(self, stage: Stage) -> dict[int, list[float]]:
        """What the trainings of each candidate gave, by seed; without a candidate of which one has failed."""
        found: dict[int, dict[int, float]] = {}
        for trial in stage.stored.trials():
            if trial.state == TrialState.COMPLETE:
                found.setdefault(trial.params["candidate"], {})[trial.params["seed"]] = (
                    trial.values[0]
                )
        whole = {
            number: by for number, by in sorted(found.items()) if len(by) == self.settings.seeds
        }
        return {number: [by[seed] for seed in sorted(by)] for number, by in whole.items()}

    def todo(self) -> int:
        """How many trainings are open at most, those of stages to come included; 0 where nothing is left to do."""
        now = self.current
        to_come = 0 if not self.settings.enabled or self._ends(now) else (self.settings.top + 3)
        return now.todo() and now.todo() + to_come * self.settings.seeds

    @cached_property
    def rule(self) -> Rule:
        """How the winner is chosen: as this run's configuration states, or as it is where that says nothing."""
        return self.question.rule or self.search.stored.default_rule()

    @cached_property
    def ranked(self) -> list[FrozenTrial]:
        """The trials that may win, the best first; of this run's budget, should it have grown."""
        ranked = self.search.stored.ranked(self.rule)
        return [trial for trial in ranked if trial.user_attrs.get(SLOT, 0) < self.search.trials]

    @cached_property
    def candidates(self) -> dict[int, Point]:
        """The best trials of the search, by number, and to compare them with the baseline, which may not be one."""
        chosen = {trial.number: trial for trial in self.ranked[: self.settings.top]}
        if chosen:
            chosen |= {
                t.number: t for t in self.search.stored.feasible() if BASELINE in t.user_attrs
            }
        return {number: self.point(chosen[number]) for number in sorted(chosen)}

    @property
    def contenders(self) -> list[int]:
        """The candidates that may win, and were judged again if that is done, by number."""
        may = {trial.number for trial in self.ranked}
        return [
            number for number in (self.judged if self.judges else self.candidates) if number in may
        ]

    def point(self, trial: FrozenTrial) -> Point:
        return self.question.space.walk(lambda parameter: trial.params[parameter.name])

    def baseline(self) -> int | None:
        numbers = [t.number for t in self.search.stored.trials() if BASELINE in t.user_attrs]
        return next((number for number in numbers if number in self.candidates), None)

    @cached_property
    def winner(self) -> int:
        """The contender that is best by what it was judged to be; the earlier of two alike.

        Where none keeps to the rule on fresh seeds, the one with the best mean.
        """
        known = {number: self.known(number) for number in self.contenders}
        metric = self.question.metric
        keeping = [number for number in known if self.rule.holds(known[number])]
        if not keeping:
            return max(known, key=lambda number: metric.sign * known[number][metric.name])
        return min(
            keeping,
            key=lambda n: (self.rule.rank(known[n]), -metric.sign * known[n][metric.name], n),
        )

    def known(self, number: int) -> dict[str, float]:
        """What is known of a candidate, with the mean of what it was judged to be in place of its value."""
        stored = self.search.stored
        trial = next(trial for trial in stored.feasible() if trial.number == number)
        judged = self.judged.get(number)
        return stored.known(trial) | ({} if judged is None else {stored.metric: fmean(judged)})

    @cached_property
    def reevaluation(self) -> Stage:
        """Every candidate on fresh seeds and validation parts, of the size that they had in the search.

        In the order of time there is but one part that all the rest comes before, the last.
        """
        count, split = self.question.config.objective.folds, self.data.split

        def part(seed: int) -> tuple[Tensor, Tensor]:
            assert split is not None
            held_out, fresh = (
                self.data.source.validation,
                derive(self.question.seed, seed, 0, 1),
            )
            return make_folds(split.targets, count, held_out, fresh, ordered=split.ordered)[-1]

        return self.stage("re-evaluation", self.candidates, part)

    @cached_property
    def retraining(self) -> Stage:
        """Winner and baseline on all training data; the value on some of it tells only that it was learnt."""
        assert self.data.split is not None
        everything = torch.arange(len(self.data.split.targets))
        kept = {
            n: point for n, point in self.candidates.items() if n in (self.winner, self.baseline())
        }
        seen = everything[: max(1, len(everything) // 5)]
        return self.stage(
            "retraining", kept, lambda seed: (everything, seen), self.run_dir / "winner"
        )

    def stage(
        self,
        title: str,
        candidates: Mapping[int, Point],
        part: Callable[[int], tuple[Tensor, Tensor]],
        weights: Path | None = None,
    ) -> Stage:
        asked = CandidateTrainings(self.question, candidates, self.settings.seeds, part)
        search = self.search
        name = f"{search.stored.name}/{title} {search.trials}-{self.settings.top}-{self.settings.seeds}"
        if self.rule != Rule(search.stored.goals[0]):
            name += f" {self.rule}"  # other candidates, other trainings
        identity = {"candidates": [*candidates], "seeds": self.settings.seeds}
        deadline = self.question.config.storage.deadline
        metric = self.question.metric
        stored = create_study(
            self.url, name, identity, asked.count, deadline, goals=[metric], wait=True
        )
        stored.wait_less(search.stored.stopping)
        if weights is not None:  # trials of other budgets and rules have the same numbers
            weights = weights / hashlib.sha256(name.encode()).hexdigest()[:12]
        return Stage(title, stored, asked, asked.count, weights)
