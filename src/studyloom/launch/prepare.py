"""Turns a config into checked objects: everything that must be right before work starts."""

import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from studyloom.config.build import build
from studyloom.config.compose import Composer
from studyloom.config.runs import note_run, storage_url
from studyloom.config.values import describe_error
from studyloom.data.training_data import TrainingData
from studyloom.errors import ConfigError, Interrupted, StorageError, wants_tracebacks
from studyloom.extras.trackers import Recalling, build_trackers
from studyloom.files import filesystem_of, is_network_filesystem
from studyloom.launch.local import Join
from studyloom.launch.task import Launcher
from studyloom.processes import end_if_forked
from studyloom.question.function import FunctionQuestion
from studyloom.question.question import Question, data_key
from studyloom.question.search_parts import KEEPS_STATE
from studyloom.question.validation import check_ranks, check_sections, validate
from studyloom.storage.connections import closed_on_error, connections_left
from studyloom.storage.embedded_server import folder_of, serve
from studyloom.storage.urls import parse_url
from studyloom.study.bounds import set_bounds
from studyloom.study.earlier_studies import find_earlier, read_earlier
from studyloom.study.enqueue import begun, enqueue, missing_baseline, redo_baseline
from studyloom.study.identity import check_code
from studyloom.study.opening import create_study, open_study
from studyloom.study.stored_study import StoredStudy
from studyloom.study.tracking import Tracking
from studyloom.study.warm_start import Begun, Remembered, WarmStarts, find_warm_starts
from studyloom.training.ranks import ALONE, Ranks

log = logging.getLogger(__name__)
# Yields the mistakes of a question whose data could be loaded, or not.
Check = Callable[[Question, TrainingData | None], Iterator[str]]


@dataclass(frozen=True)
class Prepared:
    """The objects that a config describes.

    Args:
        question: what is asked.
        launcher: starts the workers.
        data: what networks are trained on, on this process's device.
        url: of the database.
        run_dir: the folder of the run.
        starts: the points that are tried first.
        trackers: of the section `track`, by name.
    """

    question: Question
    launcher: Launcher
    data: TrainingData
    url: str
    run_dir: Path
    starts: WarmStarts
    trackers: Mapping[str, Recalling] = field(default_factory=dict)

    def track(self, stage: str, stored: StoredStudy) -> Tracking:
        """Returns what tells the trackers of a stage: of the search, and of no other."""
        return Tracking(self.trackers if stage == "search" else {}, stored, self.run_dir)


@dataclass
class Attempts:
    """Collects the mistakes of all steps, so that they are reported at once."""

    mistakes: list[str] = field(default_factory=list)

    def __call__(self, make: Callable[[], Any]) -> Any:
        """Returns what `make` returns, or None if it fails.

        Raises:
            Exception: as `make` raised it, if it is not a ValueError and HYDRA_FULL_ERROR is 1.
        """
        pid = os.getpid()
        try:
            return make()
        except Interrupted:
            raise
        except ValueError as error:
            self.mistakes.extend(getattr(error, "mistakes", [str(error)]))
        except BaseException as error:  # SystemExit too: the user's code may end its process
            if wants_tracebacks():
                raise
            self.mistakes.append(describe_error(error))
        finally:
            end_if_forked(pid)

    def check(self) -> None:
        """Raises ConfigError if there were mistakes, each once."""
        if self.mistakes:
            raise ConfigError(list(dict.fromkeys(self.mistakes)))


def prepare(cfg: DictConfig, ranks: Ranks = ALONE, checks: Sequence[Check] = ()) -> Prepared:
    """Turns the config of a command into objects, and checks all of it.

    Args:
        cfg: as composed.
        ranks: the processes that train each trial of this process.
        checks: further ones, of what a command does after the search.

    Raises:
        ConfigError: every mistake found.
    """
    attempt = Attempts()
    kind = _kind_of(cfg)
    question = attempt(lambda: kind.ask(cfg, Composer.from_hydra()))
    launcher = attempt(lambda: build(cfg.launcher))
    url = attempt(lambda: _storage_url(cfg))
    trackers = attempt(lambda: build_trackers(cfg.track))
    data = attempt(lambda: kind.gather(cfg))
    if data is not None and launcher is not None and launcher.count(2) > 1:
        data = data.shared(data_key(cfg))
    if question is not None:
        if data is None:  # there is nothing to try networks on
            attempt(lambda: attempt.mistakes.extend(check_sections(question)))
        else:
            attempt(lambda: validate(question, data))
        attempt(
            lambda: attempt.mistakes.extend(m for check in checks for m in check(question, data))
        )
        if launcher is not None and not attempt.mistakes:
            attempt.mistakes += check_ranks(question, getattr(launcher, "ranks", 1))
        if launcher is not None and not attempt.mistakes:
            attempt.mistakes += check_one_process(question, launcher)
    starts: Any = WarmStarts()
    # Not after a mistake: the points of a wrong space would be wrong too.
    if question is not None and url is not None and not attempt.mistakes:
        starts = attempt(lambda: _find_starts(question, data, url))
    if url is not None and launcher is not None:
        attempt.mistakes += check_database_reach(url, launcher)
    attempt.check()
    question, data = replace(question, ranks=ranks), _on_device(kind, data, ranks)
    return Prepared(question, launcher, data, url, Path(cfg.run_dir), starts, trackers)


def prepare_to_join(cfg: DictConfig, ranks: Ranks = ALONE) -> Prepared:
    """Turns a config into objects for work in this process on a study that exists already.

    Networks are not tried, because the command that began the study has done that; there is no
    warm start.

    Args:
        cfg: as composed.
        ranks: the processes that train each trial of this process.

    Raises:
        ConfigError: every mistake found.
    """
    attempt = Attempts()
    kind = _kind_of(cfg)
    question = attempt(lambda: kind.ask(cfg, Composer.from_hydra()))
    url = attempt(lambda: _storage_url(cfg))
    trackers = attempt(lambda: build_trackers(cfg.track))
    data = attempt(lambda: kind.gather(cfg).shared(data_key(cfg)))
    launcher = Join()
    if url is not None:
        attempt.mistakes += check_database_reach(url, launcher)
    attempt.check()
    question, data = replace(question, ranks=ranks), _on_device(kind, data, ranks)
    return Prepared(question, launcher, data, url, Path(cfg.run_dir), WarmStarts(), trackers)


def _kind_of(cfg: DictConfig) -> type[Question]:
    return FunctionQuestion if cfg.objective["_target_"] is not None else Question


def _on_device(kind: type[Question], data: TrainingData, ranks: Ranks) -> TrainingData:
    """Moves data to the GPU of this rank, the first if it is alone, or leaves it on the CPU.

    A loop of the user's own gets it on the CPU, where worker processes of a DataLoader can read it.
    """
    if kind is FunctionQuestion or not torch.cuda.is_available():
        return data
    return data.to(torch.device("cuda", ranks.rank))


def _storage_url(cfg: DictConfig) -> str:
    url = storage_url(cfg)
    if url is None:
        raise ConfigError(
            [
                "storage.url must be set; put postgresql://user:password@host/database into "
                "STUDYLOOM_STORAGE, or into a file of mode 0600 that storage.file names"
            ]
        )
    if folder_of(url) is None:
        parse_url(url)
    return url


def check_one_process(question: Question, launcher: Launcher) -> Iterator[str]:
    """Yields the mistake that several workers are started for a part that keeps its state.

    Args:
        question: whose space has no mistakes.
        launcher: of the command.
    """
    workers = launcher.count(question.trials())
    if question.keeps_state and workers > 1:
        parts = " and ".join(question.keeps_state)
        yield (
            f"{parts}: keeps its state in one process ({KEEPS_STATE}), and the launcher starts "
            f"{workers} workers; set launcher.workers=1, or have it derive what it knows from "
            "the trials, which all workers see"
        )


def check_database_reach(url: str, launcher: Launcher) -> Iterator[str]:
    """Checks that all workers can reach a database that consists of files on this host.

    Yields:
        The mistake, if there is one.
    """
    embedded = folder_of(url)
    address = parse_url(url) if embedded is None else None
    if address is not None and address.get_backend_name() != "sqlite":
        return
    files = embedded or Path(str(address and address.database)).absolute()
    filesystem = filesystem_of(files.parent)
    if launcher.leaves_host:
        place = "a server on 127.0.0.1" if embedded else f"a file on this host ({files})"
        yield (
            f"storage.url: {place} is out of reach for the workers that this launcher starts on "
            "other hosts; put the URL of a PostgreSQL server into STUDYLOOM_STORAGE, and set "
            "storage=postgres"
        )
    elif is_network_filesystem(filesystem) and (embedded or launcher.count(2) > 1):
        users = "two hosts" if embedded else "several workers"
        way_out = "" if embedded else ", or set launcher.workers=1"
        yield (
            f"storage.url: {files} lies on a network disk ({filesystem}), where {users} would "
            "damage the database; name a local disk with run_dir=…, use a PostgreSQL server"
            f"{way_out}"
        )


def check_connections(url: str, workers: int) -> None:
    """Checks that the database server has two connections left for each worker.

    A single worker runs in this process, which is connected already.

    Args:
        url: of the database.
        workers: how many workers are started.

    Raises:
        ConfigError: it has not.
    """
    left, limit = connections_left(url) if workers > 1 else (math.inf, "")
    if left < 2 * workers:
        raise ConfigError(
            [
                f"storage.url: {workers} workers take {2 * workers} connections, and the server "
                f"has {left:.0f} left ({limit}); start fewer with "
                f"launcher.workers={max(1, left // 2):.0f}, or raise the limit"
            ]
        )


def _find_starts(question: Question, data: TrainingData, url: str) -> WarmStarts:
    """Returns the points to begin with; opens the database only for those of earlier studies."""
    cfg = question.config
    if cfg.study["from"] is None:
        return find_warm_starts(question, Begun(), read_earlier)
    folder, name = folder_of(url), str(cfg.study.name)
    address = url if folder is not None and not folder.exists() else serve(url, own=True)

    def remember() -> Remembered:
        identity = question.identity(data.digest)
        return find_earlier(address, name, Path(cfg.run_dir), identity)

    return find_warm_starts(question, _begun(address, name), read_earlier, remember)


def _begun(url: str, name: str) -> Begun:
    """Returns what a study has taken from earlier ones; nothing if it does not exist."""
    if folder_of(url) is not None:
        return Begun()
    try:
        stored = open_study(url, name, deadline=0.0)
    except StorageError:
        return Begun()
    try:
        return begun(stored)
    finally:
        stored.close()


def open_or_create(prepared: Prepared, *, create: bool) -> tuple[StoredStudy, int]:
    """Returns the study, made in its database if it is missing, and the budget by the config."""
    question, trials = prepared.question, prepared.question.trials()
    name = str(question.config.study.name)
    deadline = question.config.storage.deadline
    if not create:
        with closed_on_error(open_study(prepared.url, name, deadline)) as stored:
            check_code(name, stored.code(), lambda: question.code)
        return stored, trials
    prepared.run_dir.mkdir(parents=True, exist_ok=True)
    note_run(prepared.run_dir)
    identity = question.identity(prepared.data.digest)
    stored = create_study(
        prepared.url,
        name,
        identity,
        trials,
        deadline,
        goals=question.goals,
        accept_code_change=question.config.study.accept_code_change,
    )
    with closed_on_error(stored):
        _settle(prepared, stored, trials)
    return stored, trials


def _settle(prepared: Prepared, stored: StoredStudy, trials: int) -> None:
    """Stores what the config says of a study beside its question, and what is tried first."""
    question = prepared.question
    stored.state(question.rule)
    study = question.config.study
    set_bounds(stored, study.regret if study.stop == "regret" else None, study.epochs, trials)
    if question.baseline is not None:
        if study.redo_baseline:
            redo_baseline(stored, prepared.url)
        if (missing := missing_baseline(stored)) is not None:
            log.warning("%s", missing)
    space, baseline = question.space, question.baseline
    left = enqueue(stored, prepared.starts, trials, prepared.url, space=space, baseline=baseline)
    if left:
        log.warning(
            "%d points to begin with are left out: all %d trials have begun; raise study.trials",
            left,
            trials,
        )
