"""Prepares a search: makes objects from its config, checks them, and opens its database."""

import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

from studyloom.config.build import ErrorCollector
from studyloom.config.study_config import StudyConfig
from studyloom.decisions.strategy import Strategy
from studyloom.definition.prepare import define, load_data, preflight
from studyloom.processes import collect_garbage_as_usual
from studyloom.storage.reach import check_database_reach, required_url
from studyloom.storage.stored_study import SEARCH
from studyloom.storage.urls import start_embedded_server
from studyloom.training.device import check_device, describe_missing_gpu, training_device
from studyloom.worker.begin_search import (
    begin_search,
    find_starts,
    join_search,
    match_stored_study,
    may_be_new,
)
from studyloom.worker.callbacks import MakeCallbacks
from studyloom.worker.local import Join, build_launcher
from studyloom.worker.open_study import OpenStudy, Prepared
from studyloom.worker.stage import Stage
from studyloom.worker.stopping import Stop

log = logging.getLogger(__name__)


def prepare(
    config: StudyConfig,
    *,
    joins: bool = False,
    make_callbacks: MakeCallbacks = lambda config: (),
) -> Prepared:
    """Turns the config of a command into objects, and checks all of it.

    Args:
        joins: whether this process works on a study that exists already: its networks have been
            tried by the command that began the study, and there is no warm start.
        make_callbacks: makes the callbacks that get each trial of the search that ends.

    Raises:
        ConfigError: lists every error.
    """
    # Make the objects. `attempt` returns None for a step that fails, and collects its errors;
    # `check` then raises all of them. Until then, a step is left out if a value that it needs is
    # None.
    attempt = ErrorCollector()
    definition = attempt(lambda: define(config))
    if joins:
        launcher = Join()
        # The launcher has set the variable for this process, from names that it could not try.
        missing_gpu = describe_missing_gpu()
        if missing_gpu is not None:
            log.warning("%s", missing_gpu)
    else:
        launcher = attempt(lambda: build_launcher(config))
    attempt(check_device)
    url = attempt(lambda: required_url(config))
    callbacks = attempt(lambda: make_callbacks(config))
    # Two open slots are enough to see whether the launcher starts more than one worker.
    has_several_workers = launcher is not None and launcher.count_workers(2) > 1
    data = attempt(lambda: load_data(config, shared=joins or has_several_workers))

    # Try them.
    warm_starts = None
    if definition is not None and not joins:
        preflight(attempt, definition, Strategy(definition), data, launcher)
        # If the search space has an error, warm starts would only repeat it.
        if url is not None and not attempt.errors:
            warm_starts = attempt(lambda: find_starts(definition, url))
    if url is not None and launcher is not None:
        attempt.errors += check_database_reach(
            url, several=has_several_workers, leaves_host=launcher.leaves_host
        )
    attempt.check()

    # A custom training loop gets its data on the CPU, where the processes of a DataLoader can
    # read it.
    if definition.trains_networks:
        device = training_device()
        if device.type != "cpu":
            data = data.to(device)
    prepared = Prepared(
        definition=definition,
        strategy=Strategy(definition),
        launcher=launcher,
        data=data,
        url=url,
        run_dir=Path(config.run_dir),
        callbacks=callbacks,
    )
    if warm_starts is not None:
        prepared = replace(prepared, warm_starts=warm_starts)
    return prepared


@contextmanager
def open_search(prepared: Prepared, stop: Stop, *, create: bool) -> Iterator[OpenStudy]:
    """Opens the study of a search in its database, and closes it after the body.

    Args:
        stop: ends the wait for a database that is away.
        create: whether to create the study if it is missing, and to store the settings of its
            config; else it must exist, since a command has begun it.

    Raises:
        ValueError: the database cannot be used, or its study has another definition.
        OSError: the run directory cannot be made.
        LaunchError: the cluster of a new study does not start.
    """
    # A missing server is always created; whether the study must exist on it is decided below.
    url = start_embedded_server(prepared.url, create=True)
    run_dir = prepared.run_dir
    definition = prepared.definition
    strategy = prepared.strategy
    trials = strategy.trials
    if create:
        run_dir.mkdir(parents=True, exist_ok=True)
        # If its cluster does not start, a new study is not created.
        if may_be_new(definition, url):
            prepared.launcher.start(trials, run_dir)
        stored = begin_search(strategy, prepared.data.digest, url, prepared.warm_starts, stop)
    else:
        stored = join_search(definition, url, stop)
    matched_strategy = match_stored_study(strategy, stored)
    opened = replace(prepared, url=url, strategy=matched_strategy)
    search = Stage(SEARCH, stored, definition, matched_strategy, trials, callbacks=opened.callbacks)
    with closing(OpenStudy(opened, search)) as study:
        collect_garbage_as_usual()  # the garbage collector ran rarely until now, to start faster
        yield study
