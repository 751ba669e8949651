"""Weights & Biases: a run for each trial, in a group for the study; offline until it is synced.

What a run has is read from its own file on this disk, a log of LevelDB's format with Protocol
Buffers in it, <https://github.com/google/leveldb/blob/main/doc/log_format.md>.
"""

import atexit
import json
import logging
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any

from studyloom.errors import FileError
from studyloom.extras.trackers.folders import make_folder
from studyloom.extras.trackers.sections import require
from studyloom.extras.trackers.tracker import Answer, Known, Point, TrackedStudy, TrackedTrial
from studyloom.files import read_below, write_whole
from studyloom.text import one_line

EPOCH, STATE = "epoch", "state"
MAGIC = b":W&B"
BLOCK = 32 * 1024  # bytes; records are cut at its end
SECOND = "%Y%m%d_%H%M%S"  # as in the name of a folder
SETTLED = 1.0  # seconds without a change, after which a file is taken for what it is
WRITTEN = 30.0  # seconds that a run may take to be written once it is finished
MARKS = "wandb-told"  # a folder beside `wandb`, with a file for each run that is complete


class WandB:
    """Writes a run for each trial, whose id is made of the study and the number.

    Args:
        dir: the folder that gets a folder `wandb` with the runs.
        project: of the runs.
        mode: offline, online or disabled.
        entity: a user or team; None for that of `wandb login`.
    """

    def __init__(
        self, dir: str, project: str, mode: str = "offline", entity: str | None = None
    ) -> None:
        require("wandb", "wandb")
        self.dir, self.project = Path(dir), str(project)
        self.mode, self.entity = str(mode), entity
        self._runs: dict[str, Any] = {}

    @property
    def place(self) -> str:
        return f"{self.dir.absolute()}/wandb, project {self.project}"

    def begin(self, trial: TrackedTrial) -> None:
        config = {name: _plain(value) for name, value in trial.params.items()}
        facts = {f"studyloom.{name}": text for name, text in _facts(trial).items()}
        run = self._open(trial.study, _id(trial), f"trial-{trial.number}", "trial")
        run.config.update({**config, **facts}, allow_val_change=True)
        run.define_metric(EPOCH)
        run.define_metric("*", step_metric=EPOCH)

    def report(self, trial: TrackedTrial, epoch: int, values: Mapping[str, float]) -> None:
        now = time.time()
        self.report_all(trial, [Point(epoch, name, values[name], now) for name in values])

    def report_all(self, trial: TrackedTrial, points: Sequence[Point]) -> None:
        run = self._run_of(trial)
        for epoch, of_epoch in groupby(points, lambda point: point.epoch):
            run.log({EPOCH: epoch, **{one_line(p.name): p.value for p in of_epoch}})

    def end(self, trial: TrackedTrial, state: str, values: Mapping[str, float]) -> None:
        run = self._run_of(trial)
        finals = {f"final/{one_line(name)}": value for name, value in values.items()}
        run.summary.update({STATE: state, **_facts(trial), **finals})
        self._finish(run, 1 if state == "failed" else 0)
        self._mark(_id(trial), state)

    def study_end(self, answer: Answer) -> None:
        import wandb

        run = self._open(answer.study, f"{answer.study.uuid}-study", answer.study.name, "study")
        run.config.update({name: _plain(value) for name, value in answer.params.items()})
        run.summary.update({"winner": answer.trial, **answer.values})
        if answer.files and self.mode != "disabled":
            artifact = wandb.Artifact(f"winner-{answer.study.uuid[:8]}", type="model")
            for name, path in answer.files.items():
                artifact.add_file(str(path), name, policy="immutable")
            run.log_artifact(artifact)
        self._finish(run)
        self._mark(run.id, answer.digest)

    def known(self, trial: TrackedTrial) -> Known:
        self._make_folders(trial.study)
        run_id = _id(trial)
        if (left := self._runs.get(run_id)) is not None:  # a call has failed
            try:
                self._finish(left, 1)
            except Exception:
                _end_service()
            self._runs.pop(run_id, None)
        self._settle(run_id)
        points = set[tuple[int, str]]()
        for record in self._records(run_id):
            if record.WhichOneof("record_type") == "history":
                row = {
                    item.key or item.nested_key[0]: item.value_json for item in record.history.item
                }
                epoch = json.loads(row.get(EPOCH, "null"))
                points |= {(epoch, name) for name in row if name[:1] != "_" and name != EPOCH}
        # Not begun: each process opens the run itself.
        return Known(frozenset(points), ended=self._mark_of(run_id).exists())

    def ended(self, study: TrackedStudy) -> set[int]:
        self._make_folders(study)
        marks = self._mark_of(study.uuid).parent.glob(f"{study.uuid}-*")
        numbers = (mark.name.rpartition("-")[2] for mark in marks)
        return {int(number) for number in numbers if number.isdecimal()}

    def answered(self, study: TrackedStudy) -> str | None:
        self._make_folders(study)
        mark = self._mark_of(f"{study.uuid}-study")
        with suppress(FileNotFoundError):
            return read_below(mark.parent, mark.name, 1000).decode()
        return None

    def _make_folders(self, study: TrackedStudy) -> None:
        """Makes the folders of the runs and of the marks, neither of which may be a link."""
        for name in ("wandb", MARKS):
            make_folder(study.run_dir, self.dir / name)
        if (other := self.dir / ".wandb").exists():
            raise FileError(
                f"{other}: must not be there, since W&B would write its runs into it, and not into "
                f"{self.dir / 'wandb'}; remove it, or give track.wandb.dir another folder"
            )

    def _run_of(self, trial: TrackedTrial) -> Any:
        if _id(trial) not in self._runs:
            self.begin(trial)
        return self._runs[_id(trial)]

    def _open(self, study: TrackedStudy, run_id: str, name: str, kind: str) -> Any:
        import wandb

        logging.getLogger("wandb").setLevel(logging.ERROR)
        self._make_folders(study)
        # Only what a tracker is told: no figures of the machine, no code, nothing that is printed.
        settings = wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,
            disable_code=True,
            x_disable_stats=True,
            x_disable_meta=True,
        )
        # W&B names the folder of a run by the second, and writes over one of the same name.
        while any(time.strftime(SECOND) in path.parent.name for path in self._paths(run_id)):
            time.sleep(0.05)
        try:
            run = wandb.init(
                entity=self.entity,
                project=self.project,
                dir=str(self.dir),
                id=run_id,
                name=name,
                group=study.name,
                job_type=kind,
                mode=self.mode,
                resume="allow" if self.mode == "online" else None,
                reinit="create_new",
                settings=settings,
            )
        except Exception:
            _end_service()
            raise
        # Before W&B's own, which prints a traceback if its process has been killed.
        atexit.unregister(_end_service)
        atexit.register(_end_service)
        self._runs[run_id] = run
        return run

    def _finish(self, run: Any, code: int = 0) -> None:
        """Finishes a run, and waits until it is written, which W&B's own process does later."""
        self._runs.pop(run.id, None)
        run.finish(exit_code=code)
        end = time.monotonic() + WRITTEN
        while self.mode != "disabled" and not any(map(_is_whole, self._paths(run.id)[-1:])):
            if time.monotonic() > end:
                raise TimeoutError(f"the run {run.id} was not written within {WRITTEN:g} s")
            time.sleep(0.05)

    def _settle(self, run_id: str) -> None:
        """Waits while the process of a worker that was killed still writes what it was told."""
        sizes: list[int] = []
        while True:
            open_ = [path for path in self._paths(run_id) if not _is_whole(path)]
            if not open_ or sizes == (sizes := [path.stat().st_size for path in open_]):
                return
            time.sleep(SETTLED)

    def _paths(self, run_id: str) -> list[Path]:
        found = (self.dir / "wandb").glob(f"*run-*-{run_id}/run-{run_id}.wandb")
        return sorted(p for p in found if not p.parent.is_symlink() and not p.is_symlink())

    def _records(self, run_id: str) -> Iterator[Any]:
        for path in self._paths(run_id):
            yield from read_records(path)

    def _mark_of(self, run_id: str) -> Path:
        return self.dir / MARKS / run_id

    def _mark(self, run_id: str, content: str) -> None:
        write_whole(self._mark_of(run_id), content)


def read_records(path: Path) -> Iterator[Any]:
    """Yields the records of a run's file; half a record at its end is left out.

    Args:
        path: such as wandb/offline-run-20260101_120000-ID/run-ID.wandb.

    Raises:
        FileError: it is a link, no regular file, or larger than a file of a run may be.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    content, position, record = read_below(path.parent, path.name), 0, b""
    if content[:4] == MAGIC:
        position = 7
    while position + 7 <= len(content):
        if BLOCK - position % BLOCK < 7:  # no header fits in
            position += BLOCK - position % BLOCK
            continue
        _, size, kind = struct.unpack("<IHB", content[position : position + 7])
        part = content[position + 7 : position + 7 + size]
        position += 7 + size
        if not kind or len(part) < size:
            return
        record = part if kind in (1, 2) else record + part  # whole, first, middle, last
        if kind in (1, 4):
            yield Record.FromString(record)


def _is_whole(path: Path) -> bool:
    """Whether the file of a run has been written to its end."""
    return any(record.WhichOneof("record_type") == "exit" for record in read_records(path))


def _end_service() -> None:
    """Gives up W&B's own process, which may have been killed; the next run starts another one."""
    import wandb

    with suppress(Exception):
        wandb.teardown()


def _id(trial: TrackedTrial) -> str:
    return f"{trial.study.uuid}-{trial.number}"


def _facts(trial: TrackedTrial) -> dict[str, str]:
    return {name: one_line(text) for name, text in trial.facts.items()}


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | bool | None) else one_line(str(value))
