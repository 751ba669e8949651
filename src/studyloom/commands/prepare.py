"""Turns a config into checked objects, opens the study in its database, and plans what is to do."""

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from studyloom.config.build import MistakeCollector, build
from studyloom.config.compose import Composer, note_run
from studyloom.config.runs import storage_url
from studyloom.config.schema import WinnerSection
from studyloom.config.values import plain_sections
from studyloom.data.datasets import drawn_anew
from studyloom.data.training_data import TrainingData
from studyloom.definition.definition import KEEPS_STATE, SECTIONS, Definition, data_key, kind_of
from studyloom.definition.sources import sources_of_main
from studyloom.definition.validation import breach_of_rule, check_ranks, check_sections, validate
from studyloom.errors import ConfigError, StorageError
from studyloom.files import filesystem_of, is_network_filesystem
from studyloom.launch.forks import ForkServer
from studyloom.launch.line import Line
from studyloom.launch.local import Join
from studyloom.launch.task import Command, Launcher, Task
from studyloom.plugins import load_plugin
from studyloom.processes import Stopwatch, collect_as_usual
from studyloom.storage.attributes import DEFINED, RUNG
from studyloom.storage.database import closed_on_error, connections_left
from studyloom.storage.embedded_server import folder_of, serve
from studyloom.storage.urls import parse_url
from studyloom.study.earlier_studies import EarlierStudies, find_earlier
from studyloom.study.early_end import Bounds, set_bounds
from studyloom.study.failures import Limits
from studyloom.study.opening import (
    check_code,
    check_definition,
    create_study,
    open_study,
    study_names,
)
from studyloom.study.promotion import Promotion
from studyloom.study.stopping import Stop, begin_again
from studyloom.study.stored_study import StoredStudy
from studyloom.study.tracking import Tracker, build_trackers, track_trials
from studyloom.study.warm_start import (
    WarmStarts,
    enqueue,
    find_warm_starts,
    missing_baseline,
    redo_baseline,
    sources_of,
    store_space,
)
from studyloom.study.worker import Worker
from studyloom.training.ranks import ALONE, Ranks, check_device
from studyloom.winner.stages import Plan, Stage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """The objects that a config describes; `data` is on this process's device.

    Args:
        starts: the points that are tried first.
        trackers: of the section `track`, by name.
    """

    definition: Definition
    launcher: Launcher
    data: TrainingData
    url: str
    run_dir: Path
    starts: WarmStarts
    trackers: Mapping[str, Tracker] = field(default_factory=dict)


def prepare(cfg: DictConfig, ranks: Ranks = ALONE, *, joins: bool = False) -> Prepared:
    """Turns the config of a command into objects, and checks all of it.

    Args:
        joins: whether this process works on a study that exists already: its networks have been
            tried by the command that began the study, and there is no warm start.

    Raises:
        ConfigError: every mistake found.
    """
    attempt = MistakeCollector()
    kind = kind_of(cfg)
    definition = attempt(lambda: kind.ask(cfg, Composer.from_hydra()))
    launcher = Join() if joins else attempt(lambda: build(cfg.launcher))
    attempt(lambda: check_device(getattr(launcher, "ranks", 1)))
    url = attempt(lambda: _storage_url(cfg))
    trackers = attempt(lambda: build_trackers(cfg.track))
    data = attempt(lambda: kind.gather(cfg))
    if data is not None and (joins or (launcher is not None and launcher.count(2) > 1)):
        data = attempt(lambda: data.shared(data_key(cfg)))
    starts: Any = WarmStarts()
    if definition is not None and not joins:
        _check(attempt, definition, data, launcher)
        # Not after a mistake: the points of a wrong space would be wrong too.
        if url is not None and not attempt.mistakes:
            starts = attempt(lambda: _find_starts(definition, data, url))
    if url is not None and launcher is not None:
        attempt.mistakes += check_database_reach(url, launcher)
    attempt.check()
    # A loop of the user's own gets its data on the CPU, where the processes of a DataLoader can
    # read it.
    if definition.trains_networks and (device := ranks.device).type != "cpu":
        data = data.to(device)
    definition = replace(definition, ranks=ranks)
    return Prepared(definition, launcher, data, url, Path(cfg.run_dir), starts, trackers)


def _check(
    attempt: MistakeCollector,
    definition: Definition,
    data: TrainingData | None,
    launcher: Launcher | None,
) -> None:
    """Tries out what the question asks for; without data there is nothing to try networks on."""
    if data is None:
        attempt(lambda: attempt.mistakes.extend(check_sections(definition)))
    else:
        attempt(lambda: validate(definition, data))
        if key := attempt(lambda: drawn_anew(data.split)):
            log.warning(
                "%s draws its first item anew at each look, as augmentation does, and trials are "
                "validated on it; name the same examples without random changes as %s",
                key,
                "data.evaluate" if key == "data.train" else key,
            )
        words = None if attempt.mistakes else attempt(lambda: breach_of_rule(definition, data))
        if words:
            log.warning("%s; only the trainings at the target show what is best there", words)
    if compresses(definition):
        find = load_plugin("compress_mistakes")
        attempt(lambda: attempt.mistakes.extend(find(definition, data)))
    if launcher is not None and not attempt.mistakes:
        attempt.mistakes += check_ranks(definition, getattr(launcher, "ranks", 1))
        attempt.mistakes += check_one_process(definition, launcher)


def compresses(definition: Definition) -> bool:
    """Whether the config says that the winner is made small."""
    return definition.config.get("compress") not in (None, False)


def _storage_url(cfg: DictConfig) -> str:
    url = storage_url(cfg)
    if url is None:
        raise ConfigError(
            "storage.url must be set; put postgresql://user:password@host/database into "
            "STUDYLOOM_STORAGE, or into a file of mode 0600 that storage.file names"
        )
    if folder_of(url) is None:
        parse_url(url)
    return url


def check_one_process(definition: Definition, launcher: Launcher) -> Iterator[str]:
    """Yields the mistake that several workers are started for a part that keeps its state."""
    workers = launcher.count(definition.trials())
    if definition.keeps_state and workers > 1:
        parts = " and ".join(definition.keeps_state)
        yield (
            f"{parts}: keeps its state in one process ({KEEPS_STATE}), and the launcher starts "
            f"{workers} workers; set launcher.workers=1, or derive the state from the trials"
        )


def check_database_reach(url: str, launcher: Launcher) -> Iterator[str]:
    """Yields the mistake that workers cannot reach a database of files on this host."""
    embedded = folder_of(url)
    address = parse_url(url) if embedded is None else None
    if address is not None and address.get_backend_name() != "sqlite":
        return
    files = embedded or Path(str(address and address.database)).absolute()
    filesystem = filesystem_of(files.parent)
    if launcher.leaves_host:
        place = "a server on 127.0.0.1" if embedded else f"a file on this host ({files})"
        yield (
            f"storage.url: {place} is out of reach for workers on other hosts; set storage=postgres"
            ", and STUDYLOOM_STORAGE to the URL of a PostgreSQL server"
        )
    elif is_network_filesystem(filesystem) and (embedded or launcher.count(2) > 1):
        users = "two hosts" if embedded else "several workers"
        yield (
            f"storage.url: {files} lies on a network disk ({filesystem}), where {users} would "
            "damage the database; name a local disk with run_dir=…, or use a PostgreSQL server"
        )


def check_connections(url: str, workers: int) -> None:
    """Checks that the database server has two connections left for each worker.

    A single worker runs in this process, which is connected already.
    """
    left = connections_left(url) if workers > 1 else math.inf
    if left < 2 * workers:
        raise ConfigError(
            f"storage.url: {workers} workers take {2 * workers} connections, and the server has "
            f"{left:.0f} left (max_connections); set launcher.workers={max(1, left // 2):.0f}"
        )


def _find_starts(definition: Definition, data: TrainingData, url: str) -> WarmStarts:
    """Returns the points to begin with; opens the database only for those of earlier studies."""
    cfg = definition.config
    if cfg.study["from"] is None:
        return find_warm_starts(definition)
    folder, name = folder_of(url), str(cfg.study.name)
    address = url if folder is not None and not folder.exists() else serve(url, own=True)
    before: list[str] | None = None  # the earlier studies of which it has trials
    if folder_of(address) is None:
        with suppress(StorageError), closing(open_study(address, name, deadline=0.0)) as stored:
            counts = stored.ledger.counts()
            has_begun = counts["held"] or counts["done"]
            before = sources_of(stored) or ([] if has_begun else None)

    def remember() -> EarlierStudies:
        identity = definition.identity(data.digest)
        return find_earlier(address, name, Path(cfg.run_dir), identity)

    return find_warm_starts(definition, before, remember)


def open_plan(prepared: Prepared, stop: Stop, *, create: bool) -> tuple[Prepared, Plan]:
    """Opens the study in its database, and plans what is to be done.

    Args:
        stop: whether to wait no longer for the database.
        create: whether the study is made if it is missing, and stored what the config says of it.

    Returns:
        What was prepared, with the URL of a server that runs; and the plan, to be closed.

    Raises:
        ValueError: the database cannot be used, or its study asks another question.
        OSError: the run directory cannot be made.
        LaunchError: the cluster of a new study does not start.
    """
    prepared = replace(prepared, url=serve(prepared.url, own=True))
    definition, config = prepared.definition, prepared.definition.config
    name, deadline, trials = str(config.study.name), config.storage.deadline, definition.trials()
    if create:
        prepared.run_dir.mkdir(parents=True, exist_ok=True)
        _start_cluster(prepared, name, trials)
        pruner = definition.pruner()
        stored = create_study(
            prepared.url,
            name,
            definition.identity(prepared.data.digest),
            trials,
            deadline,
            goals=definition.goals,
            rung=pruner.min_resource if isinstance(pruner, Promotion) else 0,
            accept_code_change=config.study.accept_code_change,
        )
    else:
        stored = open_study(prepared.url, name, deadline)
    with closed_on_error(stored):
        # A study of before this was stored has begun without rungs, or at epoch 1.
        definition = replace(definition, began=stored.optuna.user_attrs.get(RUNG, 0))
        prepared = replace(prepared, definition=definition)
        if create:
            note_run(prepared.run_dir, config)
            _settle(prepared, stored, trials)
        else:
            check_code(name, stored.code(), lambda: definition.code)
        stored.wait_less(stop)
        if create:
            begin_again(stored)
        settings = WinnerSection(**config.winner)
        search = Stage("search", stored, definition, trials)
        plan = Plan(search, definition, prepared.data, prepared.url, prepared.run_dir, settings)
    with closed_on_error(plan):
        if create:
            check_connections(prepared.url, prepared.launcher.count(plan.todo()))
    collect_as_usual()  # trials come next
    return prepared, plan


def _start_cluster(prepared: Prepared, name: str, trials: int) -> None:
    """Starts what a launcher works on, if it has a `start`, before it may fail a new study."""
    if start := getattr(prepared.launcher, "start", None):
        with suppress(StorageError):
            if name in study_names(prepared.url, deadline=0.0):  # there may be nothing left to do
                return
        start(trials, prepared.run_dir)


@contextmanager
def open_ended(cfg: DictConfig, stop: Stop) -> Iterator[tuple[Prepared, Plan]]:
    """Opens a study whose search has ended and whose definition is the config's, and closes it.

    Raises:
        ValueError: it has not, or the config or the database cannot be used.
    """
    prepared, plan = open_plan(prepare(cfg, joins=True), stop, create=False)
    with closing(plan):
        stored, trials = plan.search.stored, plan.search.trials
        asked = prepared.definition.identity(prepared.data.digest)
        check_definition(stored.name, stored.definition(), asked)
        if left := plan.search.todo():
            ways = "run the study to its end, or with a smaller study.trials"
            raise ConfigError(f"{plan.run_dir}: {left} of {trials} trials are open; {ways}")
        yield prepared, plan


def _settle(prepared: Prepared, stored: StoredStudy, trials: int) -> None:
    """Stores the settings of a study beside its question, and the points to try first."""
    definition = prepared.definition
    stored.store_rule(definition.rule)
    if sources := sources_of_main(plain_sections(definition.config, *SECTIONS)):
        stored.optuna.set_user_attr(DEFINED, sources)
    study = definition.config.study
    regret, cost = study.regret if study.stop == "regret" else None, definition.config.cost
    bounds = Bounds(
        regret=regret, epochs=study.epochs, trials=trials, cost=cost.limit, per_hour=cost.per_hour
    )
    set_bounds(stored, bounds)
    store_space(stored, definition)
    if definition.baseline is not None:
        if study.redo_baseline:
            redo_baseline(stored)
        if (missing := missing_baseline(stored)) is not None:
            log.warning("%s", missing)
    if left := enqueue(stored, prepared.starts, trials, baseline=definition.baseline):
        log.warning(
            "%d points to begin with are left out: all %d trials have begun; raise study.trials",
            left,
            trials,
        )


def task_of(
    prepared: Prepared,
    plan: Plan,
    command: Command,
    line: Line | None = None,
    fork_server: ForkServer | None = None,
) -> Task:
    """Returns the task of the launcher: the open trials of all stages.

    Args:
        line: to the process that watches this one, or has started it.
    """
    config, stored = plan.definition.config, plan.search.stored
    limits = Limits(**{name: config.study[name] for name in Limits.__dataclass_fields__})
    say_claimed = (line or Line()).say_claimed

    def work(stop: Stop) -> None:
        stopwatch = Stopwatch.since(command.age())
        for stage in plan:
            search, checkpoints = stage is plan.search, None
            if config.checkpoints.dir is not None:
                checkpoints = Path(config.checkpoints.dir) / ("" if search else stage.title)
                checkpoints.mkdir(parents=True, exist_ok=True)
            trackers = prepared.trackers if search else {}
            with track_trials(stage.stored, trackers, prepared.run_dir) as on_end:
                worker = Worker(
                    definition=stage.asked,
                    stored=stage.stored,
                    data=prepared.data,
                    stopping=stop,
                    checkpoints=checkpoints,
                    limits=limits,
                    weights=stage.weights,
                    watch=stopwatch,
                    on_claim=say_claimed,
                    stage=stage.title,
                    pausing=lambda: stop.paused,
                    on_end=on_end,
                )
                worker.run(stage.trials)
            if stop():
                return

    return Task(
        work=work,
        todo=plan.todo,
        ledger=stored.ledger,
        run_dir=prepared.run_dir,
        limits=limits,
        name=stored.name,
        fork_server=fork_server,
        command=command,
        halted=lambda: plan.current.stored.halted() is not None,
    )
