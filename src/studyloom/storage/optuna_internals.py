"""The only module that imports Optuna's private parts, which may change with any release."""

import sys
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import optuna
from optuna.samplers._lazy_random_state import LazyRandomState
from optuna.storages import _CachedStorage as CachedStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.models import (
    SCHEMA_VERSION,
    BaseModel,
    TrialIntermediateValueModel,
    TrialValueModel,
    VersionInfoModel,
)
from optuna.study import StudyDirection
from optuna.study._constrained_optimization import _CONSTRAINTS_KEY as CONSTRAINT
from optuna.study._frozen import FrozenStudy
from optuna.study.study import _SYSTEM_ATTR_METRIC_NAMES as METRIC_NAMES
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Column, MetaData, PrimaryKeyConstraint, String, Table

if TYPE_CHECKING:
    from optuna.importance import PedAnovaImportanceEvaluator

__all__ = [
    "ALEMBIC",
    "CONSTRAINT",
    "METRIC_NAMES",
    "MIGRATIONS",
    "SCHEMA_VERSION",
    "TABLES",
    "BaseModel",
    "CachedStorage",
    "FrozenStudy",
    "LazyRandomState",
    "TrialIntermediateValueModel",
    "TrialValueModel",
    "VersionInfoModel",
    "rate_by_ped_anova",
]

MIGRATIONS = Path(models.__file__).parent / "alembic" / "versions"

TABLES: Mapping[str, Table] = BaseModel.metadata.tables  # by name
# The table in which Alembic keeps the version of the others, as Alembic makes it.
ALEMBIC = Table(
    "alembic_version",
    MetaData(),
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)


@dataclass(frozen=True)
class _RatedTrials:
    """The part of a study that PED-ANOVA reads: complete trials, the lowest value of which is best.

    A study in memory would copy each trial, and log that it was created.
    """

    trials: list[FrozenTrial]
    directions: tuple[StudyDirection, ...] = (StudyDirection.MINIMIZE,)

    def get_trials(self, **_: object) -> list[FrozenTrial]:
        return self.trials

    def _is_multi_objective(self) -> bool:
        return False


def rate_by_ped_anova(
    trials: Iterable[FrozenTrial], losses: Mapping[int, float], best_share: float
) -> dict[str, float]:
    """Returns the score of each hyperparameter by PED-ANOVA, Optuna's default for importances.

    Args:
        trials: those to compare; each must have a loss, in whatever state it is.
        losses: a finite number for each trial, by its number; less is better.
        best_share: the share of the trials that are the best ones, which are compared with all.
    """
    rated_trials = []
    for trial in trials:
        rated_trial = FrozenTrial(
            number=trial.number,
            trial_id=trial.number,
            state=TrialState.COMPLETE,
            value=losses[trial.number],
            datetime_start=None,
            datetime_complete=None,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs={},
            system_attrs={},
            intermediate_values={},
        )
        rated_trials.append(rated_trial)
    study: Any = _RatedTrials(rated_trials)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna warns that few trials have some hyperparameter
        return _ped_anova(best_share).evaluate(study)


@cache
def _ped_anova(best_share: float) -> "PedAnovaImportanceEvaluator":
    """Returns Optuna's evaluator of importances, without importing its whole package.

    The package `optuna.importance` imports scikit-learn for other evaluators, which takes a second
    and 120 MB. Python imports a package before its modules, unless `sys.modules` has one of that
    name. So an empty package stands there while the module is imported. It is removed again, since
    a later `import optuna.importance` would otherwise find it instead of the real one.
    """
    name = "optuna.importance"
    is_loaded = name in sys.modules
    if not is_loaded:
        empty_package = ModuleType(name)
        empty_package.__path__ = [str(Path(optuna.__file__).parent / "importance")]
        sys.modules[name] = empty_package
    try:
        from optuna.importance._ped_anova import PedAnovaImportanceEvaluator
    finally:
        if not is_loaded:
            del sys.modules[name]
    return PedAnovaImportanceEvaluator(target_quantile=best_share)
