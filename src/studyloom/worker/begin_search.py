"""Opens the search of a study definition in its database, and stores its settings."""

from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

from studyloom.config.compose import note_run
from studyloom.decisions.asha import AshaPruner
from studyloom.decisions.auto_pruner import UndecidedPruner
from studyloom.decisions.early_end import Bounds, set_bounds
from studyloom.decisions.strategy import Strategy
from studyloom.decisions.warm_start import (
    WarmStarts,
    find_warm_starts,
    read_used_labels,
    store_warm_starts,
)
from studyloom.definition.definition import Definition
from studyloom.errors import StorageError
from studyloom.storage.attributes import DEFINED, RUNG, SAMPLER
from studyloom.storage.connections import closed_on_error
from studyloom.storage.opening import check_definition, create_study, open_study, study_names
from studyloom.storage.stored_study import StoredStudy
from studyloom.storage.urls import embedded_server_folder, start_embedded_server
from studyloom.worker.stopping import Stop, withdraw_stop


def find_starts(definition: Definition, url: str) -> WarmStarts:
    """Finds the configurations that are tried first, as `study.warm_start` names them.

    If the study exists, the earlier studies from which it has configurations already are left out.
    The database is opened only for a warm start.

    Args:
        url: the storage URL.
    """
    config = definition.config
    server_folder = embedded_server_folder(url)
    is_new_server = server_folder is not None and not server_folder.exists()  # without a study
    if config.study.warm_start is None or is_new_server:
        return find_warm_starts(definition)
    address = start_embedded_server(url, create=True)
    used_labels: list[str] = []  # the earlier studies from which the study has configurations
    name = str(config.study.name)
    # There are none if the study does not exist yet. An error of the database is raised later, when
    # the study is opened to be run.
    with suppress(StorageError), closing(open_study(address, name, deadline=0.0)) as stored:
        used_labels = read_used_labels(stored)
    return find_warm_starts(definition, used_labels)


def may_be_new(definition: Definition, url: str) -> bool:
    """Returns whether a database has no study of a definition's name, or cannot be read."""
    name = str(definition.config.study.name)
    try:
        return name not in study_names(url, deadline=0.0)
    except StorageError:
        return True


def begin_search(
    strategy: Strategy, digest: str, url: str, warm_starts: WarmStarts, stop: Stop
) -> StoredStudy:
    """Creates the study of a definition, or opens it, and stores the settings of its config.

    Args:
        digest: the digest of the training data.
        url: the storage URL.
        warm_starts: the configurations of earlier studies that are tried first.
        stop: ends the wait for a database that is away.

    Raises:
        DefinitionError: the study of that name has another definition.
        StorageError: the database cannot be used.
        OSError: the run directory cannot be written to.
    """
    definition = strategy.definition
    config = definition.config
    trials = strategy.trials
    pruner = strategy.pruner()
    # The first epoch at which trials are compared; 0 if the pruner pauses none.
    lowest_rung: int | None = 0
    if isinstance(pruner, AshaPruner):
        lowest_rung = pruner.min_resource
    elif isinstance(pruner, UndecidedPruner):
        lowest_rung = None  # the first trial that ends well decides it
    stored = create_study(
        url,
        str(config.study.name),
        definition.identity(digest),
        trials,
        config.storage.deadline,
        objectives=definition.objectives,
        lowest_rung=lowest_rung,
        accept_code_change=config.study.accept_code_change,
    )
    with closed_on_error(stored):
        note_run(Path(config.run_dir), config)
        _store_settings(stored, definition, warm_starts, trials)
        stored.retry.stopping = stop
        withdraw_stop(stored)  # an earlier `studyloom stop` no longer counts
    return stored


def join_search(definition: Definition, url: str, stop: Stop) -> StoredStudy:
    """Opens the study of a definition that another command has begun.

    Raises:
        DefinitionError: the user's own code has changed since.
        StorageError: the database cannot be used, or has no such study.
    """
    name = str(definition.config.study.name)
    stored = open_study(url, name, definition.config.storage.deadline)
    with closed_on_error(stored):
        code = stored.code()  # digests of the user's code with which the study runs
        if code:  # the user may have edited it since
            check_definition(name, code, definition.code)
        stored.retry.stopping = stop
    return stored


def match_stored_study(strategy: Strategy, stored: StoredStudy) -> Strategy:
    """Returns a strategy with the lowest rung and the sampler that its study began with.

    The lowest rung is the first epoch at which trials are compared, 0 without rungs.
    """
    attributes = stored.optuna.user_attrs
    # A study that is older than this attribute began without rungs, or at epoch 1.
    lowest_rung = attributes.get(RUNG, 0)
    return replace(strategy, stored_rung=lowest_rung, auto_sampler=attributes.get(SAMPLER))


def _store_settings(
    stored: StoredStudy, definition: Definition, warm_starts: WarmStarts, trials: int
) -> None:
    """Stores the settings that may change while a study exists, and queues the warm starts.

    The settings are the winner's rule, the sources of a notebook, and the bounds that end the
    search early, such as a limit on its cost.
    """
    stored.store_rule(definition.rule)
    sources = definition.script_sources()
    if sources:
        stored.optuna.set_user_attr(DEFINED, sources)
    study = definition.config.study
    cost = definition.config.cost
    min_improvement = None
    if study.stop == "improvement":
        min_improvement = study.min_improvement
    bounds = Bounds(
        min_improvement=min_improvement,
        epochs=study.epochs,
        trials=trials,
        cost=cost.limit,
        per_hour=cost.per_hour,
        target=study.target,
    )
    set_bounds(stored, bounds)
    store_warm_starts(stored, definition, warm_starts, trials)
