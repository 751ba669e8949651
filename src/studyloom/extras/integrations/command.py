"""An unchanged command as the objective of a study: its output is read line by line."""

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, Literal

import psutil

from studyloom.config.values import flatten, value_at
from studyloom.environment import CHECKPOINT_DIR, SEED, TRIAL
from studyloom.errors import CommandFailed
from studyloom.extras.integrations.shared_files import SharedFiles
from studyloom.extras.integrations.working_folder import WorkingFolder
from studyloom.objectives.loop_run import Run
from studyloom.objectives.user_functions import Adapter
from studyloom.processes import running_process_group
from studyloom.space.tree import Group, Node, Space
from studyloom.text import format_scalar, mask_passwords, nearest, shorten
from studyloom.user_code.digests import CODE, digest_source
from studyloom.worker.local import visible_gpus
from studyloom.worker.supervisor import WorkerExit

WORK = "work"  # in the run directory: the working folders that are kept
RESERVED = ("seed", "trial", "checkpoint_dir", "gpus")  # names in braces that are no keys of params
# A placeholder such as {lr}, or {{lr}} for the text {lr}.
PLACE = re.compile(r"(?P<text>\{\{[A-Za-z_][\w.]*\}\})|\{(?P<name>[A-Za-z_][\w.]*)\}")
# Suffixes of the files whose content decides a value if a command names them. Files of other kinds,
# such as .json, may be results of the command.
SOURCES = {".py", ".sh", ".yaml", ".yml", ".toml"}
LARGEST = 2**20  # bytes of a source
LAST_LINES = 12
LONGEST_LINE = 2**16  # characters; longer lines are read in pieces
LOOK = 0.02  # seconds between looks at what a command has printed
# A format of few digits in Python, such as {loss:.2f} or %5.2f, but not of a percentage.
FEW_DIGITS = r"(?:\{[^{}]*:[^{}]*\.(?P<braces>[012])f\}|%\d*\.(?P<percent>[012])f)(?!%)"
WIDEST = 300  # characters of a line that an error shows
GRACE = 3.0  # seconds between SIGTERM and SIGKILL; a worker has 6 s to release its trial


@dataclass(frozen=True)
class Command(Adapter):
    """Runs a command for each trial, and reads the value of the trial from its output.

    Args:
        run: the command, such as `python main.py --lr {lr}`. A name in braces is a key of `params`,
            or `seed`, `trial`, `checkpoint_dir`, or `gpus`: how many GPUs the worker sees, and 1
            without GPUs.
        value: a regular expression. The number that its group `value` finds in a line is reported;
            the last one is the value of the trial.
        step: a regular expression whose group `step` finds the step of a value, in the line of the
            value or one before it; None counts the values, from 1.
        cwd: where it runs: in a folder of its trial, in which the project's files appear, or in
            the folder of the project, which all trials share.
        keep: whether the folder of a trial is kept when the trial has ended.
        inputs: saved states of the project that the command reads, such as pretrained.pth, as
            files or folders. Other saved states do not appear in the folder of a trial: the command
            would resume from them.
    """

    run: str
    value: str
    step: str | None = None
    cwd: Literal["trial", "project"] = "trial"
    keep: bool = False
    inputs: Sequence[str] = ()

    keys_without_effect: ClassVar[tuple[str, ...]] = ("keep",)
    resumes: ClassVar[bool] = False  # what it keeps is its own affair
    untested: ClassVar[str] = (
        "a command returns no network to test; what it printed on new seeds is the result"
    )

    @property
    def resumes_from_files(self) -> bool:
        """True if a resumed trial finds its files; without steps it starts from scratch."""
        return self.step is not None

    def check(self, config: Mapping[str, object], space: Space) -> list[str]:
        """Returns every error that can be found before the command is run."""
        params = _params(config)
        errors = [*_run_errors(self.run, names=[*params, *RESERVED])]
        errors += _space_errors(self.run, space)
        for name in RESERVED:
            if name in params:
                errors.append(f"params.{name}: {{{name}}} is reserved; rename it")
        if value_at(config, "objective.test") is not None:
            errors.append(f"objective.test: {self.untested}; leave it out")
        errors += self._folder_errors()
        errors += _pattern_errors("value", self.value)
        if self.step is not None:
            errors += _pattern_errors("step", self.step)
        elif "checkpoint_dir" in _names_in(str(self.run)):
            errors.append(
                "objective.step must be set, since the command uses {checkpoint_dir}: when it "
                "resumes there, the values that it prints cannot be counted from 1"
            )
        return errors

    def _folder_errors(self) -> Iterator[str]:
        """Yields the errors in `cwd`, `keep` and `inputs`."""
        if self.cwd not in ("trial", "project"):
            yield f"objective.cwd must be trial or project; got {self.cwd!r}"
        if self.keep not in (True, False):
            yield f"objective.keep must be true or false; got {self.keep!r}"
        if isinstance(self.inputs, str) or not all(isinstance(name, str) for name in self.inputs):
            yield f"objective.inputs must be a list of paths, such as [a.pth]; got {self.inputs!r}"
            return
        for name in self.inputs:
            if not Path(name).exists():
                yield f"objective.inputs: there is no {name} in {Path.cwd()}"

    def notes(self, config: Mapping[str, object]) -> list[str]:
        """Returns lines that are printed before trial 0."""
        return [*self._folder_notes(config), *self._seed_notes(config), *self._digit_notes()]

    def _folder_notes(self, config: Mapping[str, object]) -> Iterator[str]:
        """Yields what a user must know about the folders in which the trials run."""
        if self.cwd == "project":
            return
        if not self.keep:
            yield (
                "each trial runs in its own folder, which is removed when the trial ends; "
                "objective.keep=true keeps it"
            )
        states = self._working_folder(config).states()
        if states:
            names = ", ".join(states[:3])
            if len(states) > 3:
                names += f" and {len(states) - 3} more"
            yield (
                f"the trials do not see {names}, from which they would resume; if the "
                f"command reads it, set objective.inputs=[{states[0]}]"
            )

    def _seed_notes(self, config: Mapping[str, object]) -> Iterator[str]:
        """Yields a line if the command is not given its seed, so that new seeds change nothing."""
        if value_at(config, "winner.enabled") is False:
            return
        reads_variable = any(SEED.name in text for _, text in self._sources())
        if "seed" not in _names_in(self.run) and not reads_variable:
            yield (
                "objective.run has no {seed}: if the script sets its seed itself, the winner's new "
                "seeds all give the same value; pass it, such as --seed {seed}"
            )

    def _digit_notes(self) -> Iterator[str]:
        """Yields a line if a script prints its value with so few digits that trials tie."""
        rounded_value = self._pattern_of_rounded_value()
        if rounded_value is None:
            return
        for path, text in self._sources():
            match = rounded_value.search(text)
            if match is not None:
                line = text.count("\n", 0, match.start()) + 1
                digits = match["braces"] or match["percent"]
                yield (
                    f"{path}, line {line}: the value is rounded to .{digits}f, so that trials "
                    "may tie; print more digits"
                )
                return

    def _pattern_of_rounded_value(self) -> re.Pattern[str] | None:
        """Returns a pattern that finds in source code where the value is printed with few digits.

        The text before a number in the output is mostly the text before its format in the source:
        for the value `loss (.+)` this finds `loss {loss:.2f}`. None without such a text.
        """
        group = "("
        if "(?P<value>" in self.value:
            group = "(?P<value>"
        before, group, _ = self.value.partition(group)
        if not group or not before.strip():
            return None
        try:
            return re.compile(before + FEW_DIGITS)
        except re.error:  # the group is within another one
            return None

    def _sources(self) -> Iterator[tuple[Path, str]]:
        """Yields the source files of the project that the command names, and their text."""
        here = Path.cwd().resolve()
        for path in self._named_files():
            if path.stat().st_size <= LARGEST:
                yield path.relative_to(here), path.read_text(errors="replace")

    def _working_folder(self, config: Mapping[str, object], *left_out: Path) -> WorkingFolder:
        """Returns what makes the folders of trials, in which no folder of studyloom appears.

        Args:
            left_out: further folders that do not appear.
        """
        project = Path.cwd()
        folders = [*left_out]
        run_dir = value_at(config, "run_dir")
        if run_dir:
            path = Path(run_dir).absolute()
            # It is mostly runs/NAME: then runs/ does not appear, with the results of all studies.
            if project in path.parent.parents:
                path = path.parent
            folders.append(path)
        checkpoints = value_at(config, "checkpoints.dir")
        if checkpoints:
            folders.append(Path(checkpoints).absolute())
        return WorkingFolder(project, folders, self.inputs)

    def code(self) -> dict[str, str]:
        """Returns the digests of the project's source files that the command names.

        Also that of `python -m package.module`. Files outside the working directory do not count.
        """
        here = Path.cwd().resolve()
        digests = {}
        for path in self._named_files():
            content = b""
            if path.stat().st_size <= LARGEST:
                content = path.read_bytes()
            digests[f"{CODE}{path.relative_to(here)}"] = digest_source(content)
        return digests

    def _named_files(self) -> Iterator[Path]:
        """Yields the source files below the working directory that the command names."""
        arguments = [word for word in shlex.split(self.run) if not PLACE.search(word)]
        paths = []
        for argument in arguments:
            paths.append(Path(argument.rpartition("=")[2]))  # of --config=a.yaml, the path after =
        for option, module in pairwise(arguments):
            if option == "-m":
                path = Path(*module.split("."))
                paths += [path.with_suffix(".py"), path / "__main__.py"]
        here = Path.cwd().resolve()
        for path in paths:
            absolute = path.resolve()
            is_source = path.suffix in SOURCES or path == paths[0]  # the first is the program
            if is_source and absolute.is_relative_to(here) and absolute.is_file():
                yield absolute

    def __call__(self, config: Mapping[str, object], run: Run) -> float:
        """Runs the command to its end, and returns the last value.

        Raises:
            CommandFailed: it printed no value, or ended with another code than 0.
        """
        record = run.dir / ".output"  # what all attempts at the trial have printed
        output = Output(self.value, self.step, report=run)
        if self.step is None:  # values are counted, so the command must start from scratch
            shutil.rmtree(run.dir, ignore_errors=True)
            run.dir.mkdir(parents=True, exist_ok=True)
        for line in _read_earlier_lines(record):
            output.read_line(line)
        arguments = _fill(self.run, _placeholder_values(config, run))
        name = _name_of_training(run)
        # A replay has no run directory, and keeps its log only while it runs.
        folder_of_logs = Path(value_at(config, "run_dir") or run.dir, "logs")
        folder_of_logs.mkdir(parents=True, exist_ok=True)
        path = folder_of_logs / f"{name}.log"
        with (
            self._working_in(config, run, name) as folder,
            path.open("a", encoding="utf-8", errors="replace", buffering=1) as log,
            run_process(arguments, _environment(run), record, folder) as (process, lines),
        ):
            log.write(f"$ {mask_passwords(shlex.join(arguments))}\n")
            for line in lines:
                log.write(f"{line}\n")
                output.read_line(line)
        if process.returncode:
            raise output.make_error(f"the command ended with {WorkerExit(process.returncode)}")
        if output.last_value is None:
            raise output.make_error(f"objective.value found nothing, with the pattern {self.value}")
        return output.last_value

    @contextlib.contextmanager
    def _working_in(self, config: Mapping[str, object], run: Run, name: str) -> Iterator[Path]:
        """Yields the folder in which the command runs for a trial.

        If that is the folder of the project, it warns of files that several trials have written.

        Args:
            name: the name of the trial, in the run directory.
        """
        run_dir = value_at(config, "run_dir")
        if self.cwd == "trial":
            folder = run.dir.absolute()
            storage = None
            if self.keep and run_dir:
                storage = Path(run_dir, WORK, name).absolute()
            yield self._working_folder(config, folder).of_trial(folder, storage)
            return
        project = Path.cwd()
        if not run_dir:  # a replay
            yield project
            return
        record = Path(run_dir, "logs", "written.jsonl")
        shared_files = SharedFiles(project, record, Path(run_dir).absolute())
        began = shared_files.begin(name)
        try:
            yield project
        finally:
            for file, trials in shared_files.end(name, began).items():
                run.warn(
                    f"{trials[0]} and {trials[-1]} wrote {file} in {project}, so that one may have "
                    "read what the other wrote; objective.cwd=trial gives each its own folder"
                )


def _params(config: Mapping[str, object]) -> dict[str, object]:
    """Returns the values of `params` by key, such as `optimizer.lr`."""
    params = value_at(config, "params")
    if not params:
        return {}
    return dict(flatten(params))


def _placeholder_values(config: Mapping[str, object], run: Run) -> dict[str, object]:
    """Returns the values that a command may use, by the names of their placeholders."""
    return _params(config) | {
        "seed": run.seed,
        "trial": run.trial,
        "checkpoint_dir": run.dir.absolute(),
        "gpus": max(1, len(visible_gpus())),
    }


def _environment(run: Run) -> dict[str, str]:
    """Returns the environment variables of a command."""
    return os.environ | {
        "PYTHONUNBUFFERED": "1",  # Python would buffer output that goes to a file
        SEED.name: str(run.seed),
        TRIAL.name: str(run.trial),
        CHECKPOINT_DIR.name: str(run.dir.absolute()),
    }


def _name_of_training(run: Run) -> str:
    """Returns the name of a training in the run directory: of a later stage, with the stage."""
    if run.stage == "search":
        return f"trial-{run.trial}"
    return f"{run.stage}-trial-{run.trial}"


# The words of a command. It is split into words before values are put into placeholders such as
# `{lr}`: a value with a blank or a quote stays within its word, and no shell reads it.


def _names_in(run: str) -> list[str]:
    """Returns the names of the placeholders in a command."""
    return [match["name"] for match in PLACE.finditer(run) if match["name"]]


def _fill(run: str, values: Mapping[str, object]) -> list[str]:
    """Fills values into the words of a command, as YAML writes them; `{{lr}}` stays text."""

    def replace_placeholder(match: re.Match[str]) -> str:
        if match["text"]:
            return match["text"][1:-1]
        return format_scalar(values[match["name"]])

    return [PLACE.sub(replace_placeholder, word) for word in shlex.split(run)]


def _run_errors(run: object, names: Sequence[str]) -> Iterator[str]:
    """Yields the errors of a command that may have placeholders only for these names."""
    if not isinstance(run, str) or not run.strip():
        yield f"objective.run must be a command, such as 'python main.py --lr {{lr}}'; got {run!r}"
        return
    for name in dict.fromkeys(_names_in(run)):
        if name not in names:
            yield (
                f"objective.run: there is no value for {{{name}}}; there are "
                f"{', '.join(names)}; write {{{{{name}}}}} for the text{nearest(name, names)}"
            )
    try:
        program = shlex.split(run)[0]
    except ValueError as error:
        yield f"objective.run: {error} in {run}"
        return
    if not PLACE.search(program) and shutil.which(program) is None:
        yield f"objective.run: the program {program} cannot be run; name one on PATH, or its path"


def _space_errors(run: object, space: Space) -> Iterator[str]:
    """Yields the hyperparameters of a space that a command does not use."""
    names = _names_in(str(run))
    nodes: list[Node] = [*space.groups()]
    for _, nodes_of_branch in space.branches():
        nodes += nodes_of_branch
    for node in nodes:
        key = node.key.removeprefix("params.")
        is_below_params = key != node.key
        if not is_below_params or isinstance(node, Group):
            yield (
                f"space.{node.name}: a command receives only what lies below params; write "
                f"space.params.{key}, and a default in params.{key}"
            )
        elif key not in names:
            yield (
                f"space.{node.name}: it would change nothing, since objective.run has no place for "
                f"it; write {{{key}}} there, or take it out of the space"
            )


# The output of a command


def _pattern_errors(group: str, pattern: str) -> Iterator[str]:
    """Yields the errors of the pattern of objective.value or objective.step."""
    try:
        compiled = re.compile(pattern)
    except (re.error, TypeError) as error:  # a TypeError: YAML has read a number
        yield f"objective.{group} must be a regular expression; got {pattern!r}: {error}"
        return
    if group not in compiled.groupindex and compiled.groups != 1:
        yield (
            f"objective.{group}: {pattern} must have a group (?P<{group}>…) for what is wanted, or "
            f"a single group (…); it has {compiled.groups or 'none'}"
        )


@dataclass
class Output:
    """Finds steps and values in lines, reports them, and keeps the last lines.

    Args:
        value: the pattern of a value.
        step: the pattern of a step; None if values are counted, from 1.
        report: called with each value and its step, if that is larger than the one before.

    Attributes:
        last_value: the value that was reported last; None if none was.
        last_step: its step.
        last_lines: the last lines, for errors.
    """

    value: str
    step: str | None
    report: Callable[[float, int], None]
    last_value: float | None = None
    last_step: int | None = None
    last_lines: deque[str] = field(default_factory=lambda: deque(maxlen=LAST_LINES))
    _step: int | None = None  # the step that was found last, or counted

    def read_line(self, line: str) -> None:
        """Reports the value in a line, if there is one.

        A command that starts from scratch prints earlier steps again; only their first values
        count.

        Raises:
            CommandFailed: the match is not a number.
        """
        if line.strip():
            self.last_lines.append(shorten(line.rstrip(), WIDEST))
        if self.step is not None:
            match = re.search(self.step, line)
            if match is not None:
                self._step = int(self._parse("step", match, int))
        match = re.search(self.value, line)
        if match is None:
            return
        value = self._parse("value", match, float)
        if self.step is None:
            self._step = (self._step or 0) + 1
        if self._step is None:  # a value before the first step
            return
        if self.last_step is None or self._step > self.last_step:
            self.last_step = self._step
            self.last_value = value
            self.report(value, self._step)

    def _parse(self, group: str, match: re.Match[str], kind: type[float]) -> float:
        """Returns the number in a group of a match, or in its only group."""
        text = match[group] if group in match.re.groupindex else match[1]
        try:
            return kind(text)
        except (TypeError, ValueError):
            noun = "integer" if kind is int else "number"
            raise self.make_error(
                f"objective.{group} found {text!r}, which is not a valid {noun}, with the pattern "
                f"{match.re.pattern}"
            ) from None

    def make_error(self, reason: str) -> CommandFailed:
        """Returns an error with the last lines, of which its message has three."""
        printed = "it printed nothing"
        if self.last_lines:
            lines = " | ".join([*self.last_lines][-3:])
            printed = f"the last lines that the command printed: {lines}"
        return CommandFailed(f"{reason}; {printed}", "\n".join(self.last_lines))


def _read_earlier_lines(record: Path) -> Iterator[str]:
    """Yields the output of earlier attempts, without a last line that a kill has cut.

    That line is removed from the file too. Otherwise the first line of the next attempt would
    continue it.
    """
    if record.exists():
        os.truncate(record, record.read_bytes().rfind(b"\n") + 1)
        yield from _read_lines(record, 0, lambda: True)


def _read_lines(path: Path, start: int, has_ended: Callable[[], bool]) -> Iterator[str]:
    """Yields the lines of a file that may grow, in little memory.

    A carriage return ends a line too: progress bars write one after each step.

    Args:
        start: the position of the first byte to read.
        has_ended: whether the file grows no more.
    """
    line = ""
    with path.open(encoding="utf-8", errors="replace") as file:
        file.seek(start)
        while True:
            # Checked before the read: if the file grew no more by then, the read reaches its end.
            is_last_read = has_ended()
            text = file.readline(LONGEST_LINE)
            line += text
            if line.endswith("\n") or len(line) >= LONGEST_LINE:
                yield line.removesuffix("\n")
                line = ""
            elif not text and is_last_read:
                break
            elif not text:
                time.sleep(LOOK)
    if line:
        yield line


@contextlib.contextmanager
def run_process(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    output: Path,
    folder: Path | None = None,
) -> Iterator[tuple[subprocess.Popen[bytes], Iterator[str]]]:
    """Runs a command in a new process group; at the end of the body all its processes have ended.

    All processes below it, and those of its group, get SIGTERM, and are killed if they do not end
    in time. If this process is killed, so is the command.

    Args:
        arguments: the program and its arguments, which no shell reads.
        environment: all its variables.
        output: the file to which its output is appended. Output in a pipe would be lost if this
            process is killed.
        folder: the folder in which it runs; None for that of this process.

    Yields:
        The process, and the lines that it prints until it has ended.

    Raises:
        OSError: it cannot be started.
    """
    with output.open("ab") as file:
        start = file.tell()
        pipes = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": subprocess.STDOUT}
        with running_process_group(arguments, env=environment, cwd=folder, **pipes) as process:
            try:
                yield process, _read_lines(output, start, lambda: process.poll() is not None)
            finally:
                _end(process)


def _end(leader: subprocess.Popen[bytes]) -> None:
    """Ends a process group, and all processes below its leader, also those of other groups."""
    processes: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        command = psutil.Process(leader.pid)
        processes = [*command.children(recursive=True), command]
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader.pid, signal.SIGTERM)
    try:
        psutil.wait_procs(processes, timeout=GRACE)
    finally:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(leader.pid, signal.SIGKILL)
        leader.wait()
