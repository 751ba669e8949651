"""All that must be right before work starts: objects from the config, checked as a whole."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from studyloom.config.build import build
from studyloom.config.compose import Composer
from studyloom.config.runs import storage_url
from studyloom.config.values import describe_error
from studyloom.data.training_data import TrainingData
from studyloom.errors import ConfigError, StorageError, wants_tracebacks
from studyloom.files import filesystem_of, is_network_filesystem
from studyloom.launch.local import Join
from studyloom.launch.task import Launcher
from studyloom.question.function import FunctionQuestion
from studyloom.question.question import Question
from studyloom.question.validation import check_sections, validate
from studyloom.search.warm_start import WarmStarts, find_warm_starts
from studyloom.storage.connections import connections_left
from studyloom.storage.embedded_server import folder_of, serve
from studyloom.storage.urls import parse_url
from studyloom.study.enqueue import known_sources, ranked_trials
from studyloom.study.stored_study import open_study


@dataclass(frozen=True)
class Prepared:
    """All that must be right before work starts."""

    question: Question
    launcher: Launcher
    data: TrainingData
    url: str
    run_dir: Path
    starts: WarmStarts


def prepare(cfg: DictConfig, *, worker: bool) -> Prepared:
    """Turns the config into objects, and checks all of it; for a worker whoever started it has done so.

    Raises:
        ConfigError: all mistakes found.
    """
    mistakes: list[str] = []

    def attempt(make: Callable[[], Any]) -> Any:  # None where it fails
        try:
            return make()
        except ValueError as error:
            mistakes.extend(getattr(error, "mistakes", [str(error)]))
        except Exception as error:
            if wants_tracebacks():
                raise
            mistakes.append(describe_error(error))

    kind = FunctionQuestion if cfg.objective["_target_"] is not None else Question
    question = attempt(lambda: kind.ask(cfg, Composer.from_hydra()))
    launcher = Join() if worker else attempt(lambda: build(cfg.launcher))
    url = attempt(lambda: _storage_url(cfg))
    data = attempt(lambda: kind.gather(cfg))
    if question is not None and not worker:
        if data is None:  # there is nothing to try networks on
            attempt(lambda: mistakes.extend(check_sections(question)))
        else:
            attempt(lambda: validate(question, data))
    starts: Any = WarmStarts()
    if (
        question is not None and url is not None and not worker and not mistakes
    ):  # points of a wrong space are wrong
        known = _known_sources(url, cfg) if cfg.study["from"] is not None else []
        starts = attempt(lambda: find_warm_starts(question, known, ranked_trials))
    if url is not None and launcher is not None:
        mistakes += check_database_reach(url, launcher)
    if mistakes:
        raise ConfigError(list(dict.fromkeys(mistakes)))
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    return Prepared(question, launcher, data.to(device), url, Path(cfg.run_dir), starts)


def _storage_url(cfg: DictConfig) -> str:
    url = storage_url(cfg)
    if url is None:
        where = "STUDYLOOM_STORAGE, or into a file of mode 0600 that storage.file names"
        raise ConfigError(
            [f"storage.url: is not set; put postgresql://user:password@host/database into {where}"]
        )
    if folder_of(url) is None:
        parse_url(url)
    return url


def check_database_reach(url: str, launcher: Launcher) -> Iterator[str]:
    """Whether all workers can reach a database that is files on this host."""
    embedded = folder_of(url)
    address = parse_url(url) if embedded is None else None
    if address is not None and address.get_backend_name() != "sqlite":
        return
    files = embedded or Path(str(address and address.database)).absolute()
    kind = filesystem_of(files.parent)
    if launcher.leaves_host:
        what = "a server on 127.0.0.1" if embedded else f"a file on this host ({files})"
        yield (
            f"storage.url: {what} is out of reach for the workers that this launcher starts on other hosts; put the "
            "URL of a PostgreSQL server into STUDYLOOM_STORAGE, and set storage=postgres"
        )
    elif is_network_filesystem(kind) and (embedded or launcher.count(2) > 1):
        many, one = (
            ("two hosts", "") if embedded else ("several workers", ", or set launcher.workers=1")
        )
        yield (
            f"storage.url: {files} lies on a network disk ({kind}), where {many} would damage the database; name a "
            f"local disk with run_dir=…, use a PostgreSQL server{one}"
        )


def check_connections(url: str, workers: int) -> None:
    """Whether the server lets all workers in, two connections each; a single one is this process."""
    left, limit = connections_left(url) if workers > 1 else (math.inf, "")
    if left < 2 * workers:
        raise ConfigError(
            [
                f"storage.url: {workers} workers take {2 * workers} connections, and the server has {left:.0f} left "
                f"({limit}); start fewer with launcher.workers={max(1, left // 2):.0f}, or raise the limit"
            ]
        )


def _known_sources(url: str, cfg: DictConfig) -> list[str]:
    """The earlier studies with whose best this one has begun already; none where it is not there yet."""
    folder = folder_of(url)
    if folder is not None and not folder.exists():
        return []
    try:
        stored = open_study(serve(url), str(cfg.study.name), deadline=0.0)
    except StorageError:
        return []
    try:
        return known_sources(stored)
    finally:
        stored.close()
