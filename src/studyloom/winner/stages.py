"""The stages that lead to the result of a study: re-evaluation and final training.

The best of 40 trials is partly luck: its value is a maximum over noise. So the result is made in
four steps, each computed from what the ones before have stored:

1. Candidates: the best few trials of the search, and the baseline to compare with.
2. Re-evaluated: each candidate is trained on the same new seeds and validation sets. The drop from
   the value in the search to the mean on new seeds is the selection gap. The candidate with the
   best mean wins; if there is a rule, among those that satisfy it.
3. Trained: winner and baseline, on the full training set.
4. Tested: both, once, on the test set.

The trainings of each stage are stored as another study in the same database. Workers share them,
and they survive crashes as the search does.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

from studyloom.config.schema import WinnerSection
from studyloom.definition.rule import Rule
from studyloom.definition.scale import FACTORS
from studyloom.errors import DefinitionError
from studyloom.launch.task import Prepared
from studyloom.study.command_record import CommandRecord, store_stage
from studyloom.study.early_end import ending
from studyloom.study.opening import create_study
from studyloom.study.stage import Stage
from studyloom.study.stored_study import FINAL_TRAINING, REEVALUATION, StageName
from studyloom.winner.candidates import (
    Candidates,
    CandidateTrainings,
    Origin,
    Reevaluated,
    choose_candidates,
)
from studyloom.winner.stored_trainings import CandidateStage, earlier_trainings, networks_folder


@dataclass
class ResultStages:
    """Opens the stages of a study, each once those before it have ended, and closes them.

    The outcome of a stage is computed from its stored study each time. The candidates are cached,
    since their configurations take a while to compose.
    """

    prepared: Prepared
    search: Stage
    _opened: list[CandidateStage] = field(default_factory=list)  # after the search

    def __post_init__(self) -> None:
        self.definition, self.data = self.prepared.definition, self.prepared.data
        self.run_dir = self.prepared.run_dir
        self.settings = WinnerSection(**self.definition.config.winner)

    def __iter__(self) -> Iterator[Stage]:
        """Yields the stages up to the first that has not ended yet."""
        yield self.search
        if self.search.todo() or not self.settings.enabled or not self.candidates:
            return
        if self.reevaluates:
            yield self.reevaluation
            if self.reevaluation.todo() or not self.reevaluated.eligible:
                return
        if self.definition.tested:
            yield self.final_training

    @property
    def later(self) -> list[CandidateStage]:
        """The stages after the search that are known."""
        return [stage for stage in self if isinstance(stage, CandidateStage)]

    @property
    def current(self) -> Stage:
        """The first stage that has not ended, or the last that is known."""
        *_, stage = self
        return stage

    def todo(self) -> int:
        """Returns how many trainings are left at most, in this stage and those to come."""
        stage = self.current
        trials = stage.todo()
        if not trials:
            return 0
        ends = not self.settings.enabled or self._is_last(stage)
        return trials if ends else trials + (self.settings.top + 3) * self.settings.seeds

    def is_done(self) -> bool:
        """Whether all stages have ended and there is a winner, to be tested if that is possible."""
        stage = self.current
        return self._is_last(stage) and not stage.todo() and bool(self.reevaluated.eligible)

    def _is_last(self, stage: Stage) -> bool:
        """Whether the winner is known once a stage has ended.

        By the title: `last` needs the winner, which is chosen once all are re-evaluated.
        """
        return stage.title == (FINAL_TRAINING if self.definition.tested else REEVALUATION)

    def reconcile(self) -> bool:
        """Corrects what another program changed in ledgers or trials; returns whether it did.

        Raises:
            StorageError: A person must decide how.
        """
        stages = (self.search, *self._opened)
        found = [stage.stored.reconcile(stage.trials) for stage in stages]
        if not any(found):
            return False
        for stage in stages:
            stage.stored.storage.forget(stage.stored.ledger.study_id)
        for name in ("rule", "candidates", "reevaluation", "final_training"):
            self.__dict__.pop(name, None)  # they were computed from the trials before
        return True

    def close(self) -> None:
        """Closes the connections; the last one of a SQLite file removes its two side files."""
        for stage in (self.search, *self._opened):
            stage.stored.close()

    def command_record(self) -> CommandRecord:
        """Returns the record of a command that works on these stages."""
        settings, definition = self.settings, self.definition
        per_hour = definition.config.cost.per_hour
        return CommandRecord(
            trials=self.search.trials,
            reevaluated=settings.enabled,
            tested=bool(definition.tested),
            top=settings.top + (len(FACTORS) if definition.scale else 0),
            seeds=settings.seeds,
            compresses=definition.compresses,
            per_hour=None if per_hour is None else float(per_hour),
        )

    @property
    def trials(self) -> int:
        """How many trials the winner is chosen from: fewer than the budget if the search ended."""
        ended = ending(self.search.stored, self.search.trials)
        return self.search.trials if ended is None else ended.begun

    # The outcomes of the stages

    @cached_property
    def rule(self) -> Rule:
        """The rule that chooses the winner: the config's, or else the study's default."""
        return self.definition.rule or self.search.stored.default_rule()

    @cached_property
    def candidates(self) -> Candidates:
        """The best trials of the search, and the baseline."""
        search, trials = self.search.stored, self.search.trials
        return choose_candidates(self.definition, search, self.rule, trials, self.settings.top)

    @property
    def reevaluates(self) -> bool:
        """Whether there is a re-evaluation; not for a single candidate that will be tested."""
        return not self.definition.tested or len(self.candidates) > 1

    @property
    def reevaluated(self) -> Reevaluated:
        """The candidates with their values on new seeds."""
        values = self.reevaluation.values() if self.reevaluates else None
        return Reevaluated(self.search.stored, self.rule, self.candidates, values)

    # The studies of the later stages

    @property
    def last(self) -> CandidateStage:
        """The stage after which there is a winner."""
        return self.final_training if self.definition.tested else self.reevaluation

    @cached_property
    def reevaluation(self) -> CandidateStage:
        """Every candidate on new seeds and validation sets of the size used in the search."""
        return self._open(REEVALUATION, self.candidates)

    @cached_property
    def final_training(self) -> CandidateStage:
        """The final training: winner and baseline on all training data."""
        found = self.reevaluated
        last = (found.winner, found.baseline)
        return self._open(FINAL_TRAINING, [origin for origin in self.candidates if origin in last])

    def _open(self, title: str, candidates: Iterable[Origin]) -> CandidateStage:
        """Opens the study of a stage, or makes it; settings that change its trainings name it."""
        search, settings, final = self.search.stored, self.settings, title == FINAL_TRAINING
        points = {origin: self.candidates[origin].point for origin in candidates}
        name = StageName(search.name, title, self.search.trials, settings.top, settings.seeds)
        if self.rule != Rule(search.goals[0]):
            name = name.with_detail(str(self.rule))  # other candidates, other trainings
        if self.definition.scale is not None:
            name = name.with_detail(str(self.definition.scale))
        code = search.code()
        if search.code_changes():  # other code, other trainings
            digest = hashlib.sha256(repr(sorted(code.items())).encode()).hexdigest()
            name = name.with_detail(f"code {digest[:8]}")
        trainings = CandidateTrainings(
            self.definition, self.data, points, settings.seeds, whole=final
        )
        repeats = trainings.repeats
        # Without a final training, or if it only repeats this, the result has these networks.
        keeps = final or repeats or not self.definition.tested
        folder = self.run_dir / "winner" if keeps else None
        earlier = earlier_trainings(search, name, folder, repeats=final and repeats)
        trainings = replace(trainings, earlier=earlier)
        numbers = [origin.number for origin in points]
        make = partial(
            create_study,
            self.prepared.url,
            definition={"candidates": numbers, "seeds": settings.seeds, **code},
            trials=len(trainings.trainings),
            deadline=self.definition.config.storage.deadline,
            goals=[self.definition.metric],
            wait=True,
        )
        try:
            stored = make(str(name))
        except DefinitionError:  # it has other candidates: a trial was deleted, or trial 0 redone
            name = name.with_detail(f"of {', '.join(map(str, numbers))}")
            stored = make(str(name))
        stored.retry.stopping = search.retry.stopping
        store_stage(search, title, stored.name)
        weights = None if folder is None else networks_folder(folder, stored.name)
        stage = CandidateStage(
            title=title,
            stored=stored,
            source=trainings,
            strategy=trainings,
            trials=len(trainings.trainings),
            weights=weights,
        )
        self._opened.append(stage)
        return stage
