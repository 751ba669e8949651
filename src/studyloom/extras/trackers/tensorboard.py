"""TensorBoard: event files with scalars and what its hparams plugin shows.

The files are written as TensorBoard's own documentation of the format says (a length, a checksum,
an event), each event whole before the next; `tensorboard.summary.writer.record_writer` does that.
"""

import contextlib
import itertools
import os
import socket
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from studyloom.errors import FileError
from studyloom.extras.trackers.folders import make_folder, refuse_link
from studyloom.extras.trackers.sections import require
from studyloom.extras.trackers.tracker import Answer, Known, Point, TrackedStudy, TrackedTrial
from studyloom.files import read_below, write_below
from studyloom.text import one_line, printable

STATE, ANSWER, FINAL = "state", "answer", "final/"
END_INFO = "session_end_info"
MARK = "study"  # the file that names the study of a folder by its uuid
ENDED = "ended"  # the file that says that a trial's events are complete
COUNT = itertools.count()


class TensorBoard:
    """Writes a folder of event files for each trial: DIR/STUDY/trial-N.

    A worker that goes on with a trial adds a file of its own with what is missing there.

    Args:
        dir: the folder for `tensorboard --logdir`.
    """

    def __init__(self, dir: str) -> None:
        require("tensorboard", "tensorboard")
        self.dir = Path(dir)
        self._files: dict[Path, Path] = {}  # to which this process adds, by folder

    @property
    def place(self) -> str:
        return str(self.dir.absolute())

    def begin(self, trial: TrackedTrial) -> None:
        from tensorboard.plugins.hparams import plugin_data_pb2

        start = plugin_data_pb2.SessionStartInfo(
            start_time_secs=trial.started, group_name=f"trial-{trial.number}"
        )
        for name, value in trial.params.items():
            _set(start.hparams[printable(name)], value)
        self._write(self._folder(trial), (_hparams("session_start_info", start), trial.started, 0))

    def report(self, trial: TrackedTrial, epoch: int, values: Mapping[str, float]) -> None:
        now = time.time()
        self.report_all(trial, [Point(epoch, name, values[name], now) for name in values])

    def report_all(self, trial: TrackedTrial, points: Sequence[Point]) -> None:
        events = []
        for epoch, of_epoch in itertools.groupby(points, lambda point: point.epoch):
            listed = list(of_epoch)
            scalars = {printable(point.name): point.value for point in listed}
            events.append((_scalars(scalars), listed[0].time, epoch))
        self._write(self._folder(trial), *events)

    def end(self, trial: TrackedTrial, state: str, values: Mapping[str, float]) -> None:
        from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2

        folder, at = self._folder(trial), trial.ended or time.time()
        points, _ = _read(folder)
        last = max((epoch for epoch, _ in points), default=0)
        finals = {FINAL + printable(name): value for name, value in values.items()}
        finals = {name: value for name, value in finals.items() if (last, name) not in points}
        words = "\n\n".join([state, *(f"{name}: {text}" for name, text in trial.facts.items())])
        status = api_pb2.STATUS_FAILURE if state == "failed" else api_pb2.STATUS_SUCCESS
        end = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=at)
        told = (_text(STATE, words), at, last)
        self._write(folder, (_scalars(finals), at, last), told, (_hparams(END_INFO, end), at, 0))
        write_below(folder, ENDED, b"")

    def study_end(self, answer: Answer) -> None:
        folder = self._study_folder(answer.study)
        values = "".join(f"\n\n{name}: {value}" for name, value in answer.values.items())
        params = "".join(f"\n\n{name}: {value}" for name, value in answer.params.items())
        words = f"trial {answer.trial}{values}{params}\n\ndigest: {answer.digest}"
        self._write(folder, (_text(ANSWER, words), time.time(), 0))

    def known(self, trial: TrackedTrial) -> Known:
        from tensorboard.plugins.hparams import metadata

        folder = self._folder(trial)
        points, tags = _read(folder)
        begun = metadata.SESSION_START_INFO_TAG in tags
        return Known(frozenset(points), begun, (folder / ENDED).exists())

    def ended(self, study: TrackedStudy) -> set[int]:
        marks = self._study_folder(study).glob(f"trial-*/{ENDED}")
        names = (mark.parent.name.removeprefix("trial-") for mark in marks)
        return {int(name) for name in names if name.isdecimal()}

    def answered(self, study: TrackedStudy) -> str | None:
        digest = None
        for event in _events(self._study_folder(study)):
            for value in event.summary.value:
                if value.tag == ANSWER and value.tensor.string_val:
                    digest = value.tensor.string_val[0].decode().rpartition("digest: ")[2]
        return digest

    def _study_folder(self, study: TrackedStudy) -> Path:
        """Returns the folder of a study; that of another one of its name is left alone."""
        for name in (study.name, f"{study.name}-{study.uuid[:8]}"):
            folder = make_folder(study.run_dir, self.dir / name)
            with contextlib.suppress(FileExistsError), (folder / MARK).open("x") as mark:
                mark.write(study.uuid)
            # Nothing in it: another worker writes it now.
            if read_below(folder, MARK, 1000) in (study.uuid.encode(), b""):
                return folder
        raise FileError(f"{folder}: is of another study")

    def _folder(self, trial: TrackedTrial) -> Path:
        folder = self._study_folder(trial.study) / f"trial-{trial.number}"
        refuse_link(folder)
        return folder

    def _write(self, folder: Path, *events: tuple[Any, float, int]) -> None:
        """Adds events, which are a summary, its time and its step, to a file of this process."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        made = [Event(wall_time=at, step=step, summary=what) for what, at, step in events]
        path = self._files.pop(folder, None)  # half an event may be in it if this fails
        if path is None:
            folder.mkdir(parents=True, exist_ok=True)
            which = f"{time.time_ns() // 10**9}.{socket.gethostname()}.{os.getpid()}.{next(COUNT)}"
            path = folder / f"events.out.tfevents.{which}"
            made.insert(0, Event(wall_time=time.time(), file_version="brain.Event:2"))
        with path.open("ab") as file:
            writer = RecordWriter(file)
            for event in made:
                writer.write(event.SerializeToString())
        self._files[folder] = path


def _read(folder: Path) -> tuple[set[tuple[int, str]], set[str]]:
    """Returns the step and tag of each scalar in a folder, and all tags."""
    points, tags = set[tuple[int, str]](), set[str]()
    for event in _events(folder):
        for value in event.summary.value:
            tags.add(value.tag)
            if value.HasField("simple_value"):
                points.add((event.step, value.tag))
    return points, tags


def _events(folder: Path) -> Iterator[Any]:
    """Yields the events in the files of a folder; half an event at the end of one is left out.

    A link is none of our files, and a pipe would be waited for.
    """
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    for path in sorted(folder.glob("events.out.tfevents.*")):
        if path.is_symlink() or not path.is_file():
            continue
        for record in RawEventFileLoader(str(path)).Load():
            yield Event.FromString(record)


def _scalars(values: Mapping[str, float]) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary

    return Summary(
        value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
    )


def _text(tag: str, words: str) -> Any:
    """Makes what the text plugin shows, as code: it renders Markdown, with pictures of any host."""
    from tensorboard.compat.proto import types_pb2
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.text import metadata
    from tensorboard.util import tensor_util

    code = textwrap.indent(printable(words), "    ").encode()
    tensor = tensor_util.make_tensor_proto([code], dtype=types_pb2.DT_STRING)
    about = metadata.create_summary_metadata(display_name=None, description=None)
    return Summary(value=[Summary.Value(tag=tag, tensor=tensor, metadata=about)])


def _hparams(name: str, info: Any) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    data = plugin_data_pb2.HParamsPluginData(**{name: info})
    about = metadata.create_summary_metadata(data)
    tensor = metadata.NULL_TENSOR
    value = Summary.Value(tag=f"_hparams_/{name}", tensor=tensor, metadata=about)
    return Summary(value=[value])


def _set(field: Any, value: Any) -> None:
    if isinstance(value, bool):
        field.bool_value = value
    elif isinstance(value, int | float):
        field.number_value = value
    else:
        field.string_value = one_line(str(value))
