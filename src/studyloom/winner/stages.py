"""The stages that lead to the result of a study: re-evaluation and final training.

The best of 40 trials is partly luck: its value is a maximum over noise. So the result is made in
four steps, each computed from what the ones before have stored:

1. Candidates: the best few trials of the search, and the baseline to compare with.
2. Re-evaluated: each candidate is trained on the same new seeds and validation sets. The drop from
   the value in the search to the mean on new seeds is the selection gap. The candidate with the
   best mean wins; if there is a rule, among those that satisfy it. With `winner.ablation` the
   winner is trained there without each of its changes to the default configuration as well.
3. Trained: winner and baseline, on the full training set.
4. Tested: both, once, on the test set.

The trainings of each stage are stored as another study in the same database. Workers share them,
and they survive crashes as the search does.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

from studyloom.config.schema import WinnerSection
from studyloom.decisions.early_end import ending
from studyloom.errors import DefinitionError
from studyloom.space.rule import Rule
from studyloom.space.tree import Point
from studyloom.storage.command_record import CommandRecord, StoredCommand, store_stage
from studyloom.storage.opening import create_study
from studyloom.storage.stored_study import ABLATION, FINAL_TRAINING, REEVALUATION, StageName
from studyloom.winner.ablation import Defaults, Losses, Names
from studyloom.winner.candidates import (
    Candidates,
    CandidateTrainings,
    Origin,
    choose_candidates,
)
from studyloom.winner.reevaluation import Reevaluated
from studyloom.winner.result import Ablation
from studyloom.winner.stored_trainings import CandidateStage, earlier_trainings, networks_folder
from studyloom.worker.stage import Stage
from studyloom.worker.task import Prepared

WITH_SIMPLE = "with the simple configuration"  # in the name of a final training


@dataclass
class ResultStages:
    """Opens the stages of a study, each once those before it have ended, and closes them.

    The outcome of a stage is computed from its stored study each time. The candidates are cached,
    since their configurations take a while to compose.
    """

    prepared: Prepared
    search: Stage
    _opened: list[CandidateStage] = field(default_factory=list)  # after the search
    _ablations: dict[Names, CandidateStage] = field(default_factory=dict)  # by what is put back

    def __post_init__(self) -> None:
        self.definition, self.data = self.prepared.definition, self.prepared.data
        self.run_dir = self.prepared.run_dir
        self.settings = WinnerSection(**self.definition.config.winner)

    def __iter__(self) -> Iterator[Stage]:
        """Yields the stages up to the first that has not ended yet.

        A search that had ended may have trials again, as after `studyloom redo`: then the stages
        after it are known again only once these have ended.
        """
        yield self.search
        if self.search.todo():
            if "candidates" in vars(self):
                self._forget_outcomes()
            return
        if not self.settings.enabled or not self.candidates:
            return
        if self.reevaluates:
            yield self.reevaluation
            if self.reevaluation.todo() or not self.reevaluated.eligible:
                return
        if self.ablates:
            for stage in self.ablations():
                yield stage
                if stage.todo():
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
        return stage.title == FINAL_TRAINING if self.definition.tested else not stage.is_search

    def reconcile(self) -> bool:
        """Corrects what another program changed in ledgers or trials; returns whether it did.

        Raises:
            StorageError: A person must decide how.
        """
        stages = (self.search, *self._opened)
        found = [stage.stored.reconcile(stage.trials) for stage in stages]
        if not any(found):
            return False
        self._forget_outcomes()
        return True

    def _forget_outcomes(self) -> None:
        """Forgets the trials, and what was computed from them; both are read again when needed."""
        for stage in (self.search, *self._opened):
            stage.stored.storage.forget(stage.stored.ledger.study_id)
        for name in ("rule", "candidates", "reevaluation", "defaults", "ablates", "final_training"):
            self.__dict__.pop(name, None)
        self._ablations.clear()

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
            top=settings.top,
            seeds=settings.seeds,
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
        return not self.definition.tested or len(self.candidates) > 1 or self.ablates

    @property
    def reevaluated(self) -> Reevaluated:
        """The candidates with their values on new seeds."""
        search = self.search.stored
        if not self.reevaluates:
            return Reevaluated(search, self.rule, self.candidates, None)
        stage = self.reevaluation
        values, partial = stage.values(), stage.partial_values()
        return Reevaluated(search, self.rule, self.candidates, values, partial)

    # The ablation

    @cached_property
    def ablates(self) -> bool:
        """Whether there is an ablation: also if the stored final training includes its outcome."""
        return self.settings.ablation or bool(self._begun_with_simple)

    @cached_property
    def defaults(self) -> Defaults:
        """Puts hyperparameters of the winner back to their defaults."""
        point = self.candidates[self.reevaluated.winner].point
        return Defaults(self.definition, point, self.search.stored.trials())

    def ablations(self) -> Iterator[CandidateStage]:
        """Yields the stages of the ablation: each change put back, then several together."""
        if self.defaults.changed:
            yield self._ablation()
            for names in self._attempts():
                yield self._ablation(names)
                if self._losses.is_within_margin(names):
                    return

    @property
    def ablation(self) -> Ablation | None:
        """The finished ablation; None if there is none."""
        return self._losses.describe(self.defaults, self.simple) if self.ablates else None

    @property
    def simple(self) -> Names | None:
        """What the simple configuration puts back, after the ablation; None without one."""
        tuple(self.ablations())  # opens the stages, if this process has not
        return next(filter(self._losses.is_within_margin, self._attempts()), None)

    def _attempts(self) -> Iterator[Names]:
        """Yields what a simple configuration may put back: all that is not needed, then fewer.

        There is none with limits of costs, which are known only of trials of the search.
        """
        if not self.rule.conditions and not self.definition.limits:
            yield from filter(self.defaults.is_possible, self._losses.attempts())

    @property
    def _losses(self) -> Losses:
        """The losses that are known so far."""
        found, known = self.reevaluated, dict[Origin, list[float]]()
        for stage in self._ablations.values():
            known |= stage.values()
        values = {origin.defaults: each for origin, each in known.items()}
        winner = (found.values or {}).get(found.winner, ())
        return Losses(winner, values, self.search.stored.sign, self.settings.margin)

    def _point(self, origin: Origin) -> Point:
        known = self.candidates.get(origin)
        return known.point if known else self.defaults.put_back(origin.defaults)

    def _with_recorded_values(self, points: Mapping[Origin, Point]) -> dict[Origin, Point]:
        """Has each ReduceLROnPlateau step on the values of the candidate's trial in the search.

        A final training has no validation set: on examples that it trains on, the metric reaches
        its plateau later than in the search, or never.
        """
        recorded = {}
        for origin, point in points.items():
            values = self.candidates[Origin(origin.trial)].recorded_values
            recorded[origin] = self.definition.with_recorded_values(point, values)
        return recorded

    def _ablation(self, names: Names = ()) -> CandidateStage:
        """Opens the stage in which hyperparameters are put back together; () for one by one."""
        names = names if len(names) > 1 else ()
        if names not in self._ablations:
            winner, put_back = self.reevaluated.winner, [names] if names else self.defaults.changed
            origins = [replace(winner, defaults=each) for each in put_back]
            detail = f"{len(names)} together" if names else ""
            self._ablations[names] = self._open(ABLATION, origins, detail)
        return self._ablations[names]

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
        """The final training: winner and baseline on all training data.

        With the simple configuration, unless the winner was trained for its test before.
        """
        found = self.reevaluated
        last = [origin for origin in self.candidates if origin in (found.winner, found.baseline)]
        if self.ablates and self._begun_with_simple is not False and (names := self.simple):
            simple = replace(found.winner, defaults=names)
            return self._open(FINAL_TRAINING, [*last, simple], WITH_SIMPLE)
        return self._open(FINAL_TRAINING, last)

    @property
    def _begun_with_simple(self) -> bool | None:
        """Whether the stored final training has the simple configuration; None without one."""
        begun = StoredCommand.read(self.search.stored).stages.get(FINAL_TRAINING, "")
        is_ours = f"{begun} ".startswith(f"{self._name(FINAL_TRAINING)} ")
        return WITH_SIMPLE in begun if is_ours else None

    def _name(self, title: str) -> StageName:
        """Names a stage by the settings that change its trainings."""
        search, settings = self.search.stored, self.settings
        name = StageName(search.name, title, self.search.trials, settings.top, settings.seeds)
        if self.rule != Rule(search.objectives[0]):
            name = name.with_detail(str(self.rule))  # other candidates, other trainings
        if search.code_changes():  # other code, other trainings
            digest = hashlib.sha256(repr(sorted(search.code().items())).encode()).hexdigest()
            name = name.with_detail(f"code {digest[:8]}")
        return name

    def _open(self, title: str, candidates: Iterable[Origin], detail: str = "") -> CandidateStage:
        """Opens the study of a stage, or makes it."""
        search, settings, final = self.search.stored, self.settings, title == FINAL_TRAINING
        points = {origin: self._point(origin) for origin in candidates}
        name, numbers = self._name(title).with_detail(detail), [each.number for each in points]
        definition = {"candidates": numbers, "seeds": settings.seeds, **search.code()}
        trainings = CandidateTrainings(
            self.definition, self.data, points, settings.seeds, whole=final
        )
        repeats = trainings.repeats
        if final and not repeats:
            trainings = replace(trainings, candidates=self._with_recorded_values(points))
        # Without a final training, or if it only repeats this, the result has these networks.
        keeps = final or repeats or not self.definition.tested
        folder = self.run_dir / "winner" if keeps else None
        earlier = earlier_trainings(search, name, definition, folder, repeats=final and repeats)
        trainings = replace(trainings, earlier=earlier)
        make = partial(
            create_study,
            self.prepared.url,
            definition=definition,
            trials=len(trainings.trainings),
            deadline=self.definition.config.storage.deadline,
            objectives=[self.definition.metric],
            wait=True,
        )
        try:
            stored = make(str(name))
        except DefinitionError:  # it has other candidates: a trial was deleted, or trial 0 redone
            name = name.with_detail(hashlib.sha256(repr(numbers).encode()).hexdigest()[:8])
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
