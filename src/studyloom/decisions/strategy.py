"""The strategy of a search: which sampler and pruner its config names, and how many trials it has.

A strategy is not part of the study definition: it may change between runs of a study.
"""

import contextlib
import functools
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import BaseSampler
from optuna.trial import TrialState, create_trial

from studyloom.config.build import build, find_target, plain
from studyloom.config.values import describe_error, value_at
from studyloom.decisions.samplers import GridSampler
from studyloom.errors import ConfigError
from studyloom.installation import pip_install
from studyloom.seeds import derive

if TYPE_CHECKING:  # torch takes two seconds, which a proposer need not wait for
    from studyloom.definition.definition import Definition

KEEPS_STATE = "keeps_state"  # our key in both sections, and the attribute of a class, for the same
# Each of their trials has a place in one sequence, which one seed makes for all of them.
ONE_SEQUENCE = (GridSampler, optuna.samplers.GridSampler, optuna.samplers.QMCSampler)
# These learn only from complete trials, of which a pruner leaves few.
FROM_COMPLETE = (
    *(optuna.samplers.GPSampler, optuna.samplers.CmaEsSampler),
    *(optuna.samplers.NSGAIISampler, optuna.samplers.NSGAIIISampler),
)
# Keys of limits that end trials or the search by what has happened so far, and such a cost.
TIMED = (
    *("study.timeout", "study.trial_timeout", "study.stop", "study.min_improvement"),
    *("study.epochs", "cost.limit"),
)


@dataclass(frozen=True)
class Strategy:
    """Makes the sampler and the pruner that the config of a study definition names.

    Args:
        began: the epoch of the lowest rung as the study began, 0 without rungs; None of a new one.
        chosen: what `sampler=auto` stands for in the study; None before that is decided.
    """

    definition: "Definition"
    began: int | None = None
    chosen: str | None = None

    def sampler(self, number: int, *, again: bool = False) -> BaseSampler:
        """Makes the sampler of a trial, seeded for it; `again` if its configuration is redrawn.

        A `seed` in its section replaces the study's. Either is combined with the trial's number:
        with one seed for all trials each would draw what the first drew, and workers drew only 4
        distinct configurations of 16.
        """
        definition = self.definition
        section = plain(definition.config.sampler)
        section.pop(KEEPS_STATE, None)
        target, given = find_target(section, "sampler"), section.get("seed")
        seed = definition.seed if given is None else given
        if not (isinstance(target, type) and issubclass(target, ONE_SEQUENCE)):
            seed = derive(seed, number, 1)
        if "seed" in section:
            section["seed"] = seed
        if re.fullmatch(r"optuna\..*CmaEsSampler", section["_target_"]):
            # Replaced by ours, which reads no pickles from the database.
            section["_target_"] = "studyloom.decisions.samplers.CmaEsSampler"
        offered = {
            "seed": seed,
            "space": definition.space,
            "baseline": definition.baseline,
            "objectives": len(definition.goals),
            "chosen": self.chosen,
            "again": again,
            "deterministic": definition.config.study.deterministic,
        }
        sampler: BaseSampler = _build(section, "sampler", **offered)
        if isinstance(sampler, FROM_COMPLETE):
            section = {"_target_": "studyloom.decisions.extrapolation.Extrapolating"}
            sampler = _build(section, "sampler", sampler=sampler)
        if definition.suggests and (given := value_at(definition.config, "params")):
            section = {"_target_": "optuna.samplers.PartialFixedSampler", "fixed_params": given}
            sampler = _build(section, "sampler", base_sampler=sampler)
        return sampler

    def pruner(self) -> BasePruner:
        """Makes the pruner of the section `pruner`."""
        definition = self.definition
        section = plain(definition.config.pruner)
        own = {name: each for name, each in section.items() if name != KEEPS_STATE}
        offered = {"definition": definition, "epochs": definition.epochs, "began": self.began}
        pruner: BasePruner = _build(own, "pruner", **offered)
        return pruner

    @functools.cached_property
    def keeps_state(self) -> tuple[str, ...]:
        """Which of `sampler` and `pruner` is one object for all trials, and so in one process.

        The key `keeps_state` of a section says so, or the attribute of that name of its class.
        """
        sections = {name: self.definition.config[name] for name in ("sampler", "pruner")}
        return tuple(
            name
            for name, section in sections.items()
            if section.get(KEEPS_STATE, getattr(find_target(section), KEEPS_STATE, False))
        )

    @property
    def points(self) -> Any:
        """The configurations that the sampler tries in turn; None if it has no such list."""
        return getattr(self.sampler(0), "points", None)

    @property
    def trials(self) -> int:
        """The budget: `study.trials`, or fewer if the sampler has fewer configurations to give."""
        config, points = self.definition.config, self.points
        size = self.definition.space.size() if points is None else len(points)
        ends = points is not None or size == 1 or not config.study.repeats
        return int(min(config.study.trials, size) if ends else config.study.trials)

    def notes(self) -> list[str]:
        """Returns notes of the sampler and the pruner that are printed before the first trial."""
        notes = (getattr(part, "note", None) for part in (self.sampler(0), self.pruner()))
        return [note for note in notes if note is not None]

    def check(self) -> Iterator[str]:
        """Yields errors if the pruner does not suit the definition; needs no data and no space."""
        definition = self.definition
        with contextlib.suppress(Exception):  # that it can be built is tried later
            pruner = self.pruner()
            pauses = getattr(pruner, "pauses", False)
            with contextlib.suppress(Exception):  # `check_sections` reports wrong objectives
                if len(definition.goals) > 1 and not (isinstance(pruner, NopPruner) or pauses):
                    yield (
                        f"pruner={definition.composer.choices.get('pruner')} compares by one "
                        "value, and objective.metric names several; set pruner=asha or none, "
                        "or name one"
                    )
            yield from getattr(pruner, "check", lambda _: ())(definition)
            if definition.config.study.deterministic:
                yield from self._check_deterministic(pruner)

    def _check_deterministic(self, pruner: BasePruner) -> Iterator[str]:
        """Yields an error for each part that depends on time, or on what has run until then."""
        definition, study = self.definition, "study.deterministic=true"
        for name in TIMED:
            if (value := value_at(definition.config, name)) is not None:
                yield (
                    f"{study}: {name}={value} depends on when trials run; set {name}=null, and "
                    "bound the search by study.trials"
                )
        if not (isinstance(pruner, NopPruner) or getattr(pruner, "pauses", False)):
            yield (
                f"{study}: pruner={definition.composer.choices.get('pruner')} compares by "
                f"{type(pruner).__name__} with what has been reported until then; set pruner=asha "
                "or none"
            )
        if self.keeps_state:
            yield (
                f"{study}: the {' and '.join(self.keeps_state)} keeps its state in one process, "
                "which may die; derive the state from the trials"
            )
        if definition.suggests:
            yield (
                f"{study}: an Optuna objective(trial) suggests while it runs; write a loop "
                "(run, **params), and its search space"
            )

    def check_workers(self, workers: int) -> Iterator[str]:
        """Yields an error if several workers are started for a part that keeps its state."""
        if self.keeps_state and workers > 1:
            parts = " and ".join(self.keeps_state)
            yield (
                f"{parts}: keeps its state in one process ({KEEPS_STATE}), and the launcher starts "
                f"{workers} workers; set launcher.workers=1, or derive the state from the trials"
            )

    def try_out(self) -> Iterator[str]:
        """Makes the sampler and the pruner, and tries both; yields their errors."""
        for name, attempt in (("sampler", self._try_sampler), ("pruner", self._try_pruner)):
            chosen = f"{name}={self.definition.composer.choices.get(name)}"
            try:
                attempt()
            except ConfigError as error:
                yield from error.errors
            except ImportError as error:
                extra = pip_install("samplers")
                yield f"{chosen} needs a library that is missing ({extra}): {describe_error(error)}"
            except Exception as error:
                yield f"{chosen}: {describe_error(error)}"

    def _try_sampler(self) -> None:
        """Makes the sampler of the first trial; some say only then that they take one objective."""
        sampler = self.sampler(0)
        directions = [goal.direction for goal in self.definition.goals]
        if len(directions) > 1:
            study = optuna.create_study(directions=directions)
            study.add_trial(create_trial(state=TrialState.RUNNING))
            space = sampler.infer_relative_search_space(study, study.trials[0])
            sampler.sample_relative(study, study.trials[0], space)

    def _try_pruner(self) -> None:
        """Lets a pruner compare two made-up trials: some import what they need only then."""
        pruner = self.pruner()
        study = optuna.create_study(direction=self.definition.metric.direction, pruner=pruner)
        reports = dict.fromkeys(range(1, 6), 0.5)
        study.add_trial(create_trial(value=0.5, intermediate_values=reports))
        study.add_trial(create_trial(state=TrialState.RUNNING, intermediate_values=reports))
        pruner.prune(study, study.trials[1])


def _build(section: dict[str, Any], key: str, **offered: Any) -> Any:
    """Builds a part of Optuna without warnings that it is experimental, as TPE with group=True."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return build(section, key, **offered)
