"""Opens the search of a study definition in its database, and stores its settings."""

from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

from studyloom.config.compose import note_run
from studyloom.decisions.asha import AshaPruner
from studyloom.decisions.early_end import Bounds, set_bounds
from studyloom.decisions.strategy import Strategy
from studyloom.decisions.warm_start import (
    WarmStarts,
    find_warm_starts,
    read_sources,
    store_warm_starts,
)
from studyloom.definition.definition import Definition
from studyloom.errors import StorageError
from studyloom.storage.attributes import DEFINED, RUNG, SAMPLER
from studyloom.storage.connections import closed_on_error
from studyloom.storage.opening import check_definition, create_study, open_study, study_names
from studyloom.storage.stored_study import StoredStudy
from studyloom.storage.urls import folder_of, serve
from studyloom.worker.stopping import Stop, withdraw_stop


def find_starts(definition: Definition, url: str) -> WarmStarts:
    """Finds the configurations to begin with; opens the database only for a warm start."""
    cfg = definition.config
    if cfg.study.warm_start is None:
        return find_warm_starts(definition)
    folder = folder_of(url)
    address = url if folder is not None and not folder.exists() else serve(url, own=True)
    begun: list[str] = []  # the earlier studies of which it has trials
    if folder_of(address) is None:
        name = str(cfg.study.name)
        with suppress(StorageError), closing(open_study(address, name, deadline=0.0)) as stored:
            begun = read_sources(stored)
    return find_warm_starts(definition, begun)


def may_be_new(definition: Definition, url: str) -> bool:
    """Returns whether a database has no study of a definition's name, or does not say so."""
    with suppress(StorageError):
        return str(definition.config.study.name) not in study_names(url, deadline=0.0)
    return True


def begin_search(
    strategy: Strategy, digest: str, url: str, starts: WarmStarts, stop: Stop
) -> StoredStudy:
    """Creates the study of a definition, or opens it, and stores what the config says of it.

    Args:
        digest: of the training data.
        stop: whether to wait no longer for the database.

    Raises:
        DefinitionError: the study of that name has another definition.
        StorageError: the database cannot be used.
        OSError: the run directory cannot be written to.
    """
    definition, pruner, trials = strategy.definition, strategy.pruner(), strategy.trials
    config = definition.config
    stored = create_study(
        url,
        str(config.study.name),
        definition.identity(digest),
        trials,
        config.storage.deadline,
        objectives=definition.objectives,
        rung=pruner.min_resource if isinstance(pruner, AshaPruner) else 0,
        accept_code_change=config.study.accept_code_change,
    )
    with closed_on_error(stored):
        note_run(Path(config.run_dir), config)
        _settle(stored, definition, starts, trials)
        stored.retry.stopping = stop
        withdraw_stop(stored)
    return stored


def join_search(definition: Definition, url: str, stop: Stop) -> StoredStudy:
    """Opens the study of a definition that a command has begun.

    Raises:
        DefinitionError: the user's own code has changed since.
        StorageError: the database cannot be used, or has no such study.
    """
    name = str(definition.config.study.name)
    stored = open_study(url, name, definition.config.storage.deadline)
    with closed_on_error(stored):
        if code := stored.code():  # the user may edit it while the study runs
            check_definition(name, code, definition.code)
        stored.retry.stopping = stop
    return stored


def as_begun(strategy: Strategy, stored: StoredStudy) -> Strategy:
    """Returns a strategy with the lowest rung and the sampler that its study began with."""
    # A study of before this was stored has begun without rungs, or at epoch 1.
    known = stored.optuna.user_attrs
    return replace(strategy, began=known.get(RUNG, 0), auto_sampler=known.get(SAMPLER))


def _settle(stored: StoredStudy, definition: Definition, starts: WarmStarts, trials: int) -> None:
    """Stores the settings that a definition lacks, and queues configurations to try first."""
    stored.store_rule(definition.rule)
    if sources := definition.script_sources():
        stored.optuna.set_user_attr(DEFINED, sources)
    study, cost = definition.config.study, definition.config.cost
    bounds = Bounds(
        min_improvement=study.min_improvement if study.stop == "improvement" else None,
        epochs=study.epochs,
        trials=trials,
        cost=cost.limit,
        per_hour=cost.per_hour,
    )
    set_bounds(stored, bounds)
    store_warm_starts(stored, definition, starts, trials)
