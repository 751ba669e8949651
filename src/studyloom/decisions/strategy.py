"""The strategy of a search: which sampler and pruner its config names, and how many trials it has.

A strategy is not part of the study definition: it may change between runs of a study.

Each worker makes its own sampler and pruner, a new sampler for each trial, so that a decision
follows from the database only. A part that *keeps state* is the exception: one object serves all
trials of a search, which therefore has a single worker.
"""

import copy
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, PartialFixedSampler
from optuna.trial import TrialState, create_trial

from studyloom.config.build import build, call_target, find_target, plain
from studyloom.config.values import describe_error, value_at
from studyloom.decisions.asha import AshaPruner
from studyloom.decisions.auto_pruner import ExplainedPruner
from studyloom.decisions.auto_sampler import AutoSampler
from studyloom.decisions.extrapolation import Extrapolating
from studyloom.decisions.given_samplers import (
    KEEPS_STATE,
    check_stops,
    copy_for_trial,
    copy_given,
    may_keep_state,
    seed_sequences,
)
from studyloom.decisions.samplers import CmaEsSampler, GridSampler, SamplerContext
from studyloom.errors import ConfigError
from studyloom.installation import pip_install
from studyloom.seeds import derive
from studyloom.space.tree import Configuration
from studyloom.user_code.pickled import registered_object

if TYPE_CHECKING:  # torch takes two seconds, which a proposer need not wait for
    from studyloom.definition.definition import Definition

# Samplers whose trials have their places in one sequence, so that they share one seed.
SAMPLERS_OF_SEQUENCES = (GridSampler, optuna.samplers.GridSampler, optuna.samplers.QMCSampler)
# Samplers that learn only from complete trials, of which a pruner leaves few.
SAMPLERS_OF_COMPLETE_TRIALS = (
    optuna.samplers.GPSampler,
    optuna.samplers.CmaEsSampler,
    optuna.samplers.NSGAIISampler,
    optuna.samplers.NSGAIIISampler,
)
NO_OPTION = "None"  # the composer's text for the option of a group that has none
# Keys that end trials or the search, depending on when trials run.
TIME_DEPENDENT_KEYS = (
    "study.timeout",
    "study.trial_timeout",
    "study.stop",
    "study.min_improvement",
    "study.target",
    "study.epochs",
    "cost.limit",
)


@dataclass(frozen=True)
class Strategy:
    """Makes the sampler and the pruner that the config of a study definition names.

    Args:
        stored_rung: the epoch of the lowest rung that the study has stored, 0 if it has no rungs;
            None for a new study, and while that is not decided.
        auto_sampler: the sampler that `sampler=auto` has chosen in the study; None until then.
    """

    definition: "Definition"
    stored_rung: int | None = None
    auto_sampler: str | None = None

    def sampler(self, number: int, *, redraws: bool = False) -> BaseSampler:
        """Makes the sampler of a trial; its class may have the parameters `seed` and `context`.

        Args:
            number: the number of the trial.
            redraws: whether the trial has drawn a configuration already, which was refused.
        """
        definition = self.definition
        section = plain(definition.config["sampler"], "sampler")
        section.pop(KEEPS_STATE, None)
        target = find_target(section, "sampler")
        if target is optuna.samplers.CmaEsSampler:
            target = CmaEsSampler  # which reads no pickles from the database

        seed = self._find_seed(section, target, number)
        if "seed" in section:
            section["seed"] = seed
        context = SamplerContext(
            space=definition.space,
            baseline=definition.baseline,
            objectives=len(definition.objectives),
            redraws=redraws,
            deterministic=definition.config.study.deterministic,
            auto_sampler=self.auto_sampler,
        )
        with _no_experimental_warnings():
            sampler: BaseSampler = call_target(
                target, section, "sampler", seed=seed, context=context
            )
            if target is registered_object:
                sampler = self._copy_given(sampler, seed)
            sampler = _show_pruned(sampler)
            if definition.has_optuna_objective:
                fixed_params = value_at(definition.config, "params")
                if fixed_params:
                    sampler = PartialFixedSampler(fixed_params, sampler)
        return sampler

    def _copy_given(self, sampler: BaseSampler, seed: int) -> BaseSampler:
        """Copies a sampler that was given as an object, which may serve another study too.

        Args:
            sampler: the object.
            seed: the seed of the trial, with which a sampler begins that keeps no state.
        """
        if self._keeps_state("sampler"):
            return copy_given(sampler)
        copied = copy_for_trial(sampler, seed)
        seed_sequences(copied, self.definition.seed)
        return copied

    def _find_seed(self, section: Mapping[str, Any], target: object, number: int) -> int:
        """Returns the seed of a trial's sampler.

        A `seed` in the section `sampler` replaces the study's seed. It is combined with the trial's
        number: with one seed for all, each trial would draw what the first one drew. But samplers
        whose trials have places in one sequence, such as a grid, share one seed.

        Args:
            section: the section `sampler`.
            target: the class of the sampler, or a function that makes it.
            number: the number of the trial.
        """
        seed: int | None = section.get("seed")
        if seed is None:
            seed = self.definition.seed
        shares_sequence = isinstance(target, type) and issubclass(target, SAMPLERS_OF_SEQUENCES)
        if shares_sequence:
            return seed
        return derive(seed, number, 1)

    def pruner(self) -> BasePruner:
        """Makes the pruner that the section `pruner` names.

        Its class may have the parameters `definition`; `epochs`, the number of epochs of a whole
        training, or None if it is not known; and `stored_rung`, see `Strategy`.
        """
        definition = self.definition
        section = plain(definition.config["pruner"], "pruner")
        section.pop(KEEPS_STATE, None)
        with _no_experimental_warnings():
            pruner: BasePruner = build(
                section,
                "pruner",
                definition=definition,
                epochs=definition.epochs,
                stored_rung=self.stored_rung,
            )
        if find_target(section, "pruner") is registered_object:
            return copy.deepcopy(pruner)  # the object may have served another study
        return pruner

    @functools.cached_property
    def keeps_state(self) -> tuple[str, ...]:
        """The names of the parts that keep state, "sampler" or "pruner".

        A part keeps state if one object of it serves all trials, and learns from them.
        """
        return tuple(name for name in ("sampler", "pruner") if self._keeps_state(name))

    def _keeps_state(self, name: str) -> bool:
        """Returns whether the sampler or the pruner keeps state, and so must serve all trials.

        The key `keeps_state` of the part's section says so; without the key, an attribute of its
        class.

        Args:
            name: sampler or pruner.
        """
        section = self.definition.config[name]
        if KEEPS_STATE in section:
            return bool(section[KEEPS_STATE])
        target = find_target(section, name)
        if target is registered_object:
            return may_keep_state(registered_object(section["name"]))
        # The class may be a user's or Optuna's, which need not have the attribute.
        return bool(getattr(target, KEEPS_STATE, False))

    def _describe_option(self, group: str) -> str:
        """Describes the sampler or the pruner for messages, as "sampler=tpe".

        One that a call gives as an object or class is described by its class: "sampler=MySampler".

        Args:
            group: sampler or pruner.
        """
        definition = self.definition
        option = definition.composer.choices.get(group, NO_OPTION)
        if option == NO_OPTION:
            section = definition.config[group]
            target: Any = find_target(section, group)
            if target is registered_object:
                target = type(registered_object(section["name"]))
            option = target.__name__
        return f"{group}={option}"

    @property
    def configurations(self) -> list[Configuration] | None:
        """The configurations that the sampler tries in turn; None if it has no such list."""
        sampler = self.sampler(0)
        if isinstance(sampler, GridSampler):
            return sampler.configurations
        return None

    @property
    def trials(self) -> int:
        """The budget: `study.trials`, or fewer if the sampler has fewer configurations to give."""
        study = self.definition.config.study
        budget = int(study.trials)
        configurations = self.configurations
        if configurations is not None:
            return min(budget, len(configurations))
        size = self.definition.space.size()
        nothing_is_searched = size == 1
        if nothing_is_searched or not study.allow_repeats:
            return int(min(budget, size))
        return budget

    def notes(self) -> list[str]:
        """Returns what sampler and pruner say before the first trial: what `auto` stands for."""
        notes = []
        sampler = self.sampler(0)
        if isinstance(sampler, AutoSampler):
            notes.append(sampler.note)
        pruner = self.pruner()
        if isinstance(pruner, ExplainedPruner):
            notes.append(pruner.note)
        return notes

    def check(self) -> Iterator[str]:
        """Yields an error for each reason why the pruner does not suit the definition.

        The check needs neither the data nor the search space, so that it can run before both are
        read.
        """
        try:
            pruner = self.pruner()
        except Exception:  # whatever a user's class raises; `try_out` reports it
            return
        compares_one_value = not isinstance(pruner, NopPruner | AshaPruner)
        if compares_one_value and self._has_several_objectives():
            yield (
                f"{self._describe_option('pruner')} compares by one value, "
                " and objective.metric names several; set pruner=asha or none, "
                "or name one"
            )
        if isinstance(pruner, AshaPruner):
            yield from self._check_pauses(pruner)
        if self.definition.config.study.deterministic:
            yield from self._check_deterministic(pruner)

    def _has_several_objectives(self) -> bool:
        try:
            return len(self.definition.objectives) > 1
        except ConfigError:  # `check_sections` reports wrong objectives
            return False

    def _check_pauses(self, pruner: AshaPruner) -> list[str]:
        """Returns every reason why the trials of the definition cannot be paused."""
        try:
            return pruner.check(self.definition)
        except ConfigError:  # `try_out` of the definition reports a wrong objective
            return []

    def _check_deterministic(self, pruner: BasePruner) -> Iterator[str]:
        """Yields an error for each setting by which trials would differ from run to run.

        These are bounds on time, and parts that depend on which trials have run so far.

        Args:
            pruner: the pruner of the study.
        """
        definition = self.definition
        setting = "study.deterministic=true"
        for name in TIME_DEPENDENT_KEYS:
            value = value_at(definition.config, name)
            if value is not None:
                yield (
                    f"{setting}: {name}={value} depends on when trials run; set {name}=null, and "
                    "bound the search by study.trials"
                )
        if not isinstance(pruner, NopPruner | AshaPruner):
            kind: type[BasePruner] = type(pruner)
            if isinstance(pruner, MedianPruner):
                kind = MedianPruner
            yield (
                f"{setting}: {self._describe_option('pruner')} compares by "
                f"{kind.__name__} with what has been reported until then; set pruner=asha "
                "or none"
            )
        if self.keeps_state:
            yield (
                f"{setting}: the {' and '.join(self.keeps_state)} keeps its state in one process, "
                "which may die; derive the state from the trials"
            )
        if definition.has_optuna_objective:
            yield (
                f"{setting}: an Optuna objective(trial) suggests while it runs; write a loop "
                "(run, **params), and its search space"
            )

    def check_workers(self, workers: int) -> Iterator[str]:
        """Yields an error if several workers are started for a part that keeps its state.

        They may be started at the same time, or one after the other by `launcher.recycle`.

        Args:
            workers: how many workers are started at the same time.
        """
        if not self.keeps_state:
            return
        parts = " and ".join(self.keeps_state)
        recycle = value_at(self.definition.config, "launcher.recycle")
        if recycle is not None:
            yield (
                f"{parts}: keeps its state in one process ({KEEPS_STATE}), and "
                f"launcher.recycle={recycle} replaces the process; set launcher.recycle=null, or "
                "derive the state from the trials"
            )
        if workers > 1:
            yield (
                f"{parts}: keeps its state in one process ({KEEPS_STATE}), and the launcher starts "
                f"{workers} workers; set launcher.workers=1, or derive the state from the trials"
            )

    def try_out(self) -> Iterator[str]:
        """Makes the sampler and the pruner, and tries both; yields their errors."""
        yield from self._list_errors("sampler", self._try_sampler)
        yield from self._list_errors("pruner", self._try_pruner)

    def _list_errors(self, group: str, try_part: Callable[[], None]) -> list[str]:
        """Tries the sampler or the pruner, and returns the errors that this raises.

        Args:
            group: sampler or pruner.
            try_part: makes the sampler or the pruner, and tries it.
        """
        option = self._describe_option(group)
        try:
            try_part()
        except ConfigError as error:
            return error.errors
        except ImportError as error:
            extra = pip_install("samplers")
            return [f"{option} needs a library that is missing ({extra}): {describe_error(error)}"]
        except Exception as error:  # of a user's class
            return [f"{option}: {describe_error(error)}"]
        return []

    def _try_sampler(self) -> None:
        """Makes the sampler of the first trial; raises the exceptions of the sampler.

        Some samplers take only one objective, and raise an exception only when they draw. So if
        there are several objectives, the sampler draws for a trial of a study in memory.
        """
        sampler = self.sampler(0)
        errors = list(check_stops(sampler))
        if errors:
            raise ConfigError(errors)
        directions = [objective.direction for objective in self.definition.objectives]
        if len(directions) > 1:
            study = optuna.create_study(directions=directions)
            study.add_trial(create_trial(state=TrialState.RUNNING))
            (trial,) = study.trials
            space = sampler.infer_relative_search_space(study, trial)
            sampler.sample_relative(study, trial, space)

    def _try_pruner(self) -> None:
        """Lets the pruner compare a running trial with a complete one, in a study in memory.

        Some pruners import their libraries only when they compare.
        """
        pruner = self.pruner()
        study = optuna.create_study(direction=self.definition.metric.direction, pruner=pruner)
        reports = dict.fromkeys(range(1, 6), 0.5)  # steps 1 to 5, of any value
        study.add_trial(create_trial(value=0.5, intermediate_values=reports))
        study.add_trial(create_trial(state=TrialState.RUNNING, intermediate_values=reports))
        _, running_trial = study.trials
        pruner.prune(study, running_trial)


def _show_pruned(sampler: BaseSampler) -> BaseSampler:
    """Lets a sampler that learns only from complete trials learn from pruned ones too.

    Args:
        sampler: the sampler, or one that fixes some parameters of such a sampler.
    """
    if isinstance(sampler, PartialFixedSampler):
        sampler._base_sampler = _show_pruned(sampler._base_sampler)
    if isinstance(sampler, SAMPLERS_OF_COMPLETE_TRIALS):
        return Extrapolating(sampler)
    return sampler


@contextmanager
def _no_experimental_warnings() -> Iterator[None]:
    """Hides Optuna's warnings that a class or an argument is experimental, as group=True of TPE."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield
