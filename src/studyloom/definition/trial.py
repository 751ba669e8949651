"""The trial of an objective of Optuna's, `objective(trial) -> value`, which suggests as it goes.

It is Optuna's own, whose parameters are committed as they are suggested, and whose reports are
those of a `Run`.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.trial import BaseTrial

from studyloom.definition.run import Run
from studyloom.metrics import Goal
from studyloom.storage.attributes import OF_STUDIES, OF_TRIALS
from studyloom.text import is_scalar

# The methods of a trial's study that would end or repeat trials of which studyloom keeps count.
REFUSED = {
    "stop": "other workers search too; set study.epochs or study.stop=regret",
    "tell": "studyloom ends each trial with the value that the objective returns; return it",
    "add_trial": "studyloom counts the trials; `studyloom propose` has a configuration tried",
}


class ObjectiveTrial(optuna.Trial):
    """A trial in the hands of an objective of Optuna's; see the module.

    Args:
        trial: the stored trial, which suggests by the study's sampler; None to give the `known`
            parameters again, by the rules of `optuna.trial.FixedTrial`.
        uncut: surrounds what no signal may cut in two.
        store: commits what is new of the trial.
    """

    def __init__(
        self,
        trial: BaseTrial | None,
        known: Mapping[str, Any],
        goals: Sequence[Goal],
        run: Run,
        uncut: Callable[[], AbstractContextManager[None]],
        store: Callable[[], None],
    ) -> None:
        self._known = None if trial else known
        if trial is None:
            study = optuna.create_study(directions=[goal.direction for goal in goals])
            study.enqueue_trial(dict(known))
            trial = study.ask()
        vars(self).update(vars(trial))
        self.study = copy.copy(self.study)
        vars(self.study).update({name: partial(_refuse, name) for name in REFUSED})
        vars(self.study).update(set_user_attr=self._set_study_attr)
        self._run, self._uncut, self._store = run, uncut, store
        self._before = {*self._cached_frozen_trial.distributions}  # suggested by an attempt before
        self._steps: set[int] = set()
        self._pruned = False

    @property
    def number(self) -> int:
        """The number of the trial in its stage, as that of its run."""
        return self._run.trial

    @property
    def system_attrs(self) -> dict[str, Any]:
        """The system attributes, as Optuna had them before 5.0.

        A trial that goes on in another process is a retry of itself to
        `RetryFailedTrialCallback.retry_history`: so it finds the artifacts of the attempt before.
        """
        stored = self.storage.get_trial_system_attrs(self._trial_id)
        if self._known is not None or self._run.attempt == 1:
            return stored
        return {**stored, "failed_trial": self.number, "retry_history": [self.number]}

    def report(self, value: float, step: int) -> None:
        """Reports by the run; that the trial is to be pruned, `should_prune` says."""
        if self._pruned:
            raise optuna.TrialPruned  # for an objective that has not asked
        if (step := int(step)) in self._steps:
            return  # as Optuna, which takes the first
        self._steps.add(step)
        try:
            self._run(value, step)
        except optuna.TrialPruned:
            self._pruned = True

    def should_prune(self) -> bool:
        return self._pruned

    def set_user_attr(self, key: str, value: Any) -> None:
        _check_name("trial", key, OF_TRIALS)
        with self._uncut():
            super().set_user_attr(key, value)

    def _set_study_attr(self, key: str, value: Any) -> None:
        _check_name("study", key, OF_STUDIES)
        with self._uncut():
            optuna.Study.set_user_attr(self.study, key, value)

    def _suggest(self, name: str, distribution: BaseDistribution) -> Any:
        if name in self._cached_frozen_trial.distributions:
            if name in self._before:
                self._before.remove(name)
                self._skip(name, distribution)
            return super()._suggest(name, distribution)
        with self._uncut():
            _check_choices(name, distribution)
            if self._known is None:
                self._check_other_trials(name, distribution)
            elif name not in self._known:
                raise ValueError(
                    f"the trial that is repeated has no parameter {name}, it has "
                    f"{', '.join(self._known) or 'none'}; suggest what follows from those before"
                )
            value = super()._suggest(name, distribution)
            if self._known is None:
                self._store()
        return value

    def _skip(self, name: str, distribution: BaseDistribution) -> None:
        """Draws what is known already, so that the sampler goes on as without a death."""
        drawn = distribution.single() or self._is_fixed_param(name, distribution)
        if not drawn and not self._is_relative_param(name, distribution):
            trial = self._cached_frozen_trial
            self.study.sampler.sample_independent(self.study, trial, name, distribution)

    def _check_other_trials(self, name: str, distribution: BaseDistribution) -> None:
        """Raises ValueError for what Optuna's own storage refuses, with the way out."""
        for other in self.study.get_trials(deepcopy=False):
            if (known := other.distributions.get(name)) is not None:
                try:
                    check_distribution_compatibility(known, distribution)
                except ValueError as error:
                    raise ValueError(
                        f"{name} is suggested as {distribution}, and in trial {other.number} as "
                        f"{known}: {error} Give it another name where it is another parameter"
                    ) from error
                return


def _refuse(name: str, *_: Any, **__: Any) -> None:
    raise ValueError(f"trial.study.{name}: {REFUSED[name]}")


def _check_name(what: str, key: str, ours: Sequence[str]) -> None:
    if key in ours:
        raise ValueError(f"{what}.set_user_attr: {key} is a name of ours; choose another")


def _check_choices(name: str, distribution: BaseDistribution) -> None:
    """Raises ValueError for choices that neither a database nor YAML gives back as they are."""
    for choice in getattr(distribution, "choices", ()):
        if not is_scalar(choice) or "${" in str(choice):
            raise ValueError(
                f"the choices of {name} must be strings without ${{, numbers, true, false or None; "
                f"got {choice!r}; choose by a name, and look up what it stands for"
            )
