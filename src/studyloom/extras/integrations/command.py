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
from typing import ClassVar, Literal, TextIO

import psutil

from studyloom.config.values import flatten, value_at
from studyloom.environment import CHECKPOINT_DIR, SEED, TRIAL
from studyloom.errors import CommandFailed
from studyloom.extras.integrations.shared_files import SharedFiles
from studyloom.extras.integrations.working_folder import WorkingFolder
from studyloom.objectives.loop_run import Run
from studyloom.objectives.user_functions import Adapter
from studyloom.processes import running_process_group, signal_group
from studyloom.space.tree import Group, Node, Space
from studyloom.text import format_scalar, mask_passwords, nearest, shorten
from studyloom.user_code.digests import CODE
from studyloom.user_code.source_code import digest_source
from studyloom.worker.local import visible_gpus
from studyloom.worker.supervisor import WorkerExit

WORK = "work"  # in the run directory: the working folders that are kept
RESERVED = ("seed", "trial", "checkpoint_dir", "gpus")  # names in braces that are no keys of params
# A placeholder such as {lr}, or {{lr}} for the text {lr}.
PLACEHOLDER = re.compile(r"(?P<text>\{\{[A-Za-z_][\w.]*\}\})|\{(?P<name>[A-Za-z_][\w.]*)\}")
# Suffixes of the files whose content decides a value if a command names them. Files of other kinds,
# such as .json, may be results of the command.
SOURCES = {".py", ".sh", ".yaml", ".yml", ".toml"}
MAX_SOURCE_BYTES = 2**20
LAST_LINES = 12  # of the output, which an error holds
LAST_LINES_SHOWN = 3  # of them, which the message of the error shows
MAX_LINE_LENGTH = 2**16  # characters; longer lines are read in pieces
POLL_INTERVAL = 0.02  # seconds between looks at what a command has printed
# A format of few digits in Python, such as {loss:.2f} or %5.2f, but not of a percentage.
FEW_DIGITS = r"(?:\{[^{}]*:[^{}]*\.(?P<braces>[012])f\}|%\d*\.(?P<percent>[012])f)(?!%)"
MAX_SHOWN_WIDTH = 300  # characters of a line that an error shows
SAVED_STATES_SHOWN = 3  # names in the note about files that the trials do not see
SECONDS_TO_END = 3.0  # between SIGTERM and SIGKILL; a worker has 6 s to release its trial


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

    @property
    def untested(self) -> str | None:
        """The reason why the winner is not tested."""
        return "a command returns no network to test; what it printed on new seeds is the result"

    @property
    def resumes_from_files(self) -> bool:
        """True if a resumed trial finds its files; without steps it starts from scratch."""
        return self.step is not None

    def check(self, config: Mapping[str, object], space: Space) -> list[str]:
        """Returns every error that can be found before the command is run."""
        params = _params(config)
        errors: list[str] = []
        errors += _check_run(self.run, names=[*params, *RESERVED])
        errors += _check_space(self.run, space)
        for name in RESERVED:
            if name in params:
                errors.append(f"params.{name}: {{{name}}} is reserved; rename it")
        if self.untested is not None and value_at(config, "objective.test") is not None:
            errors.append(f"objective.test: {self.untested}; leave it out")
        errors += self._check_folders()
        errors += self._check_patterns()
        return errors

    def _check_patterns(self) -> Iterator[str]:
        """Yields the errors in `value` and `step`."""
        yield from check_pattern("value", self.value)
        if self.step is not None:
            yield from check_pattern("step", self.step)
        elif "checkpoint_dir" in _placeholder_names(str(self.run)):
            yield (
                "objective.step must be set, since the command uses {checkpoint_dir}: when it "
                "resumes there, the values that it prints cannot be counted from 1"
            )

    def _check_folders(self) -> Iterator[str]:
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
        notes = [*self._list_folder_notes(config)]
        notes += self._list_seed_notes(config)
        notes += self._list_digit_notes()
        return notes

    def _list_folder_notes(self, config: Mapping[str, object]) -> Iterator[str]:
        """Yields what a user must know about the folders in which the trials run."""
        if self.cwd == "project":
            return
        if not self.keep:
            yield (
                "each trial runs in its own folder, which is removed when the trial ends; "
                "objective.keep=true keeps it"
            )
        # Such as checkpoints of earlier runs, which lie in the project.
        saved_states = self._make_working_folder(config).hidden_states()
        if saved_states:
            names = ", ".join(saved_states[:SAVED_STATES_SHOWN])
            further = len(saved_states) - SAVED_STATES_SHOWN
            if further > 0:
                names += f" and {further} more"
            yield (
                f"the trials do not see {names}, from which they would resume; if the "
                f"command reads it, set objective.inputs=[{saved_states[0]}]"
            )

    def _list_seed_notes(self, config: Mapping[str, object]) -> Iterator[str]:
        """Yields a line if the command does not use the seed of the trial.

        The winner's trainings with new seeds would then all give the same value. A command gets
        the seed by the placeholder {seed}, or its scripts read the variable STUDYLOOM_SEED.
        """
        if value_at(config, "winner.enabled") is not False and not self._uses_seed():
            yield (
                "objective.run has no {seed}: if the script sets its seed itself, the winner's new "
                "seeds all give the same value; pass it, such as --seed {seed}"
            )

    def _uses_seed(self) -> bool:
        """Returns True if the command names the seed of the trial, or its scripts read it."""
        reads_variable = any(SEED.name in text for _, text in self._sources())
        return reads_variable or "seed" in _placeholder_names(self.run)

    def _list_digit_notes(self) -> Iterator[str]:
        """Yields a line if a script prints its value with so few digits that trials tie."""
        rounded_value = self._make_pattern_of_rounded_value()
        if rounded_value is None:
            return
        for path, text in self._sources():
            match = rounded_value.search(text)
            if match is not None:
                line = text.count("\n", 0, match.start()) + 1
                digits = match["braces"] or match["percent"]  # of {loss:.2f} or %.2f
                yield (
                    f"{path}, line {line}: the value is rounded to .{digits}f, so that trials "
                    "may tie; print more digits"
                )
                return

    def _make_pattern_of_rounded_value(self) -> re.Pattern[str] | None:
        """Returns a pattern that finds in source code where the value is printed with few digits.

        For the value `loss (.+)` it finds `loss {loss:.2f}` in the source: the text before a number
        in the output, here `loss `, is mostly the text before its format in the source.

        Returns:
            None if the pattern of the value has no text before its group.
        """
        start_of_group = "("
        if "(?P<value>" in self.value:
            start_of_group = "(?P<value>"
        if start_of_group not in self.value:
            return None
        text_before, _, _ = self.value.partition(start_of_group)
        if not text_before.strip():
            return None
        try:
            return re.compile(text_before + FEW_DIGITS)
        except re.error:  # the group is within another one
            return None

    def _sources(self) -> Iterator[tuple[Path, str]]:
        """Yields the source files of the project that the command names, and their text."""
        here = Path.cwd().resolve()
        for path in self._find_named_files():
            if path.stat().st_size <= MAX_SOURCE_BYTES:
                yield path.relative_to(here), path.read_text(errors="replace")

    def _make_working_folder(
        self, config: Mapping[str, object], trial_folder: Path | None = None
    ) -> WorkingFolder:
        """Makes a WorkingFolder, which creates a folder with the project's files for each trial.

        The files of studyloom do not appear there: the run directory and the checkpoints.

        Args:
            trial_folder: the folder of a trial, which does not appear either.
        """
        project = Path.cwd()
        hidden_folders = []
        if trial_folder is not None:
            hidden_folders.append(trial_folder)
        run_dir = value_at(config, "run_dir")
        if run_dir:
            hidden_folder = Path(run_dir).absolute()
            # It is mostly runs/NAME: then runs/ does not appear, with the results of all studies.
            folder_of_runs = hidden_folder.parent
            is_within_project = project in folder_of_runs.parents  # and is not the project itself
            if is_within_project:
                hidden_folder = folder_of_runs
            hidden_folders.append(hidden_folder)
        checkpoints = value_at(config, "checkpoints.dir")
        if checkpoints:
            hidden_folders.append(Path(checkpoints).absolute())
        return WorkingFolder(project, hidden_folders, self.inputs)

    def code(self) -> dict[str, str]:
        """Returns the digests of the project's source files that the command names.

        A file that is too large for a source, such as a compiled program, counts by its name only.
        """
        here = Path.cwd().resolve()
        digests = {}
        for path in self._find_named_files():
            content = b""
            if path.stat().st_size <= MAX_SOURCE_BYTES:
                content = path.read_bytes()
            digests[f"{CODE}{path.relative_to(here)}"] = digest_source(content)
        return digests

    def _find_named_files(self) -> Iterator[Path]:
        """Yields the source files that the command names below the working directory.

        The files are the command's program; an argument such as `a.yaml` or `--config=a.yaml`; and
        the module of `python -m package.module`.
        """
        arguments = [word for word in shlex.split(self.run) if not PLACEHOLDER.search(word)]
        paths = []
        for argument in arguments:
            _, _, path_or_word = argument.rpartition("=")
            paths.append(Path(path_or_word))
        for option, module in pairwise(arguments):
            if option == "-m":
                path = Path(*module.split("."))
                paths.append(path.with_suffix(".py"))
                paths.append(path / "__main__.py")
        here = Path.cwd().resolve()
        for path in paths:
            is_program = path == paths[0]
            is_source = is_program or path.suffix in SOURCES
            absolute = path.resolve()
            if is_source and absolute.is_relative_to(here) and absolute.is_file():
                yield absolute

    def __call__(self, config: Mapping[str, object], run: Run) -> float:
        """Runs the command to its end for a trial, and returns the last value that it printed.

        A trial that is resumed has the output of its earlier attempts in a file of its folder.
        That output is read first, as if the command printed it now.

        Raises:
            CommandFailed: it printed no value, or ended with another code than 0.
        """
        output_file = run.dir / ".output"
        output = self._read_earlier_output(config, run, output_file)
        arguments = self._make_arguments(collect_placeholder_values(config, run))
        name = _name_of_training(run)
        # A replay has no run directory, and keeps its log only while it runs.
        folder_of_logs = Path(value_at(config, "run_dir") or run.dir, "logs")
        folder_of_logs.mkdir(parents=True, exist_ok=True)
        log_path = folder_of_logs / f"{name}.log"
        with (
            self._prepared_folder(config, run, name) as folder,
            log_path.open("a", encoding="utf-8", errors="replace", buffering=1) as log,
        ):
            program = ProgramOfTrial(run, folder, log)
            program.run(arguments, output_file, output)
            output.end()
            if output.last_value is None:
                raise output.make_error_without_value()
            self._end_training(config, program, output)
        return output.last_value

    def _end_training(
        self, config: Mapping[str, object], program: "ProgramOfTrial", output: "Output"
    ) -> None:
        """Ends a training, in whose folder its files still are.

        Args:
            program: runs a further program there.
            output: what the command has printed.
        """

    def _read_earlier_output(
        self, config: Mapping[str, object], run: Run, output_file: Path
    ) -> "Output":
        """Returns the output of a trial, with the lines that earlier attempts have printed."""
        if self.step is None:  # values are counted, so the command must start from scratch
            remove_files(run)
        output = Output(self.value, self.step, report=run)
        for line in read_earlier_lines(output_file):
            output.read_line(line)
        return output

    def _make_arguments(self, values: Mapping[str, object]) -> list[str]:
        """Returns the words of the command of a trial.

        Args:
            values: the values of the placeholders, by their names.
        """
        return [fill_placeholders(word, values) for word in shlex.split(self.run)]

    @contextlib.contextmanager
    def _prepared_folder(self, config: Mapping[str, object], run: Run, name: str) -> Iterator[Path]:
        """Yields the folder in which the command of a trial runs: its own, or the project's.

        In the project's folder, which all trials share, it warns after the body of files that
        several trials have written.

        Args:
            name: the name of the trial, in the run directory.
        """
        run_dir = value_at(config, "run_dir")
        if self.cwd == "trial":
            trial_folder = run.dir.absolute()
            working_folder = self._make_working_folder(config, trial_folder)
            storage = None
            if self.keep and run_dir:
                storage = Path(run_dir, WORK, name).absolute()
            yield working_folder.prepare(trial_folder, storage)
            return
        project = Path.cwd()
        if not run_dir:  # a replay, which has no run directory to record in
            yield project
            return
        record = Path(run_dir, "logs", "written.jsonl")
        shared_files = SharedFiles(project, record, Path(run_dir).absolute())
        began = shared_files.begin(name)
        try:
            yield project
        finally:
            newly_shared = shared_files.end(name, began)
            for file, trials in newly_shared.items():
                run.warn(
                    f"{trials[0]} and {trials[-1]} wrote {file} in {project}, so that one may have "
                    "read what the other wrote; objective.cwd=trial gives each its own folder"
                )


@dataclass(frozen=True)
class ProgramOfTrial:
    """Runs programs for a trial, in its folder; their output is in its log.

    Args:
        folder: where they run.
        log: gets each command and its output.
    """

    trial_run: Run
    folder: Path
    log: TextIO

    def run(self, arguments: Sequence[str], output_file: Path, output: "Output") -> None:
        """Runs a program to its end.

        Args:
            arguments: the program and its arguments.
            output_file: the file that gets its output, after that of earlier attempts.
            output: reads each line.

        Raises:
            CommandFailed: it ended with another code than 0.
        """
        environment = _make_environment(self.trial_run)
        with run_process(arguments, environment, output_file, self.folder) as (process, lines):
            self.log.write(f"$ {mask_passwords(shlex.join(arguments))}\n")
            for line in lines:
                self.log.write(f"{line}\n")
                output.read_line(line)
        if process.returncode:
            raise output.make_error(f"the command ended with {WorkerExit(process.returncode)}")


def _params(config: Mapping[str, object]) -> dict[str, object]:
    """Returns the values of `params` by key, such as `optimizer.lr`."""
    params = value_at(config, "params")
    if not params:
        return {}
    return dict(flatten(params))


def collect_placeholder_values(config: Mapping[str, object], run: Run) -> dict[str, object]:
    """Returns the values that a command may use, by the names of their placeholders."""
    return _params(config) | {
        "seed": run.seed,
        "trial": run.trial,
        "checkpoint_dir": run.dir.absolute(),
        "gpus": max(1, len(visible_gpus())),
    }


def _make_environment(run: Run) -> dict[str, str]:
    """Returns the environment variables of a command."""
    return os.environ | {
        "PYTHONUNBUFFERED": "1",  # Python would buffer output that goes to a file
        SEED.name: str(run.seed),
        TRIAL.name: str(run.trial),
        CHECKPOINT_DIR.name: str(run.dir.absolute()),
    }


def _name_of_training(run: Run) -> str:
    """Returns the name of a training's files in the run directory.

    Such as `trial-3`; after the search, when a trial is trained again, with the stage before it.
    """
    if run.stage == "search":
        return f"trial-{run.trial}"
    return f"{run.stage}-trial-{run.trial}"


# The words of a command. It is split into words before values are put into placeholders such as
# `{lr}`: a value with a blank or a quote stays within its word, and no shell reads it.


def _placeholder_names(run: str) -> list[str]:
    """Returns the names of the placeholders in a command."""
    return [match["name"] for match in PLACEHOLDER.finditer(run) if match["name"]]


def fill_placeholders(word: str, values: Mapping[str, object]) -> str:
    """Fills values into the placeholders of a word of a command, as YAML writes them.

    `--lr={lr}` becomes `--lr=0.1`; doubled braces, as in `{{lr}}`, become the text `{lr}`.
    """

    def replace_placeholder(match: re.Match[str]) -> str:
        """Returns what replaces a match of PLACEHOLDER: `{{text}}`, or the `{name}` of a value."""
        if match["text"]:
            return match["text"][1:-1]  # without the outer braces
        return format_scalar(values[match["name"]])

    return PLACEHOLDER.sub(replace_placeholder, word)


def _check_run(run: object, names: Sequence[str]) -> Iterator[str]:
    """Yields the errors of a command: placeholders without a value, or a program that is missing.

    Args:
        names: the names of the placeholders that have a value.
    """
    if not isinstance(run, str) or not run.strip():
        yield f"objective.run must be a command, such as 'python main.py --lr {{lr}}'; got {run!r}"
        return
    for name in dict.fromkeys(_placeholder_names(run)):  # each name once, in order
        if name not in names:
            placeholder = "{" + name + "}"
            escaped = "{" + placeholder + "}"
            yield (
                f"objective.run: there is no value for {placeholder}; there are "
                f"{', '.join(names)}; write {escaped} for the text{nearest(name, names)}"
            )
    try:
        program = shlex.split(run)[0]
    except ValueError as error:
        yield f"objective.run: {error} in {run}"
        return
    if not PLACEHOLDER.search(program) and shutil.which(program) is None:
        yield f"objective.run: the program {program} cannot be run; name one on PATH, or its path"


def _check_space(run: object, space: Space) -> Iterator[str]:
    """Yields an error for each hyperparameter of a space that a command does not use.

    A command receives the values below `params`, by their placeholders. It cannot use a group of
    the space, which chooses one of several branches.
    """
    placeholder_names = _placeholder_names(str(run))
    nodes: list[Node] = [*space.groups()]
    for branch in space.branches():
        nodes += branch.nodes
    for node in nodes:
        key = node.key.removeprefix("params.")
        is_below_params = node.key.startswith("params.")
        if not is_below_params or isinstance(node, Group):
            yield (
                f"space.{node.name}: a command receives only what lies below params; write "
                f"space.params.{key}, and a default in params.{key}"
            )
        elif key not in placeholder_names:
            yield (
                f"space.{node.name}: it would change nothing, since objective.run has no place for "
                f"it; write {{{key}}} there, or take it out of the space"
            )


# The output of a command


def check_pattern(group: str, pattern: str, key: str = "") -> Iterator[str]:
    """Yields the errors of the pattern of objective.value or objective.step.

    Args:
        group: value or step, which is also the name of the group in the pattern.
        key: the key of the section; "" for that of the name.
        pattern: a regular expression, such as "loss (?P<value>.+)" or "loss (.+)".
    """
    try:
        compiled = re.compile(pattern)
    except (re.error, TypeError) as error:  # a TypeError: YAML has read a number
        yield f"objective.{key or group} must be a regular expression; got {pattern!r}: {error}"
        return
    if group not in compiled.groupindex and compiled.groups != 1:
        yield (
            f"objective.{key or group}: {pattern} must have a group (?P<{group}>…) for what is "
            f"wanted, or a single group (…); it has {compiled.groups or 'none'}"
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
        last_step: the step of that value.
        last_lines: the last lines, for errors.
    """

    value: str
    step: str | None
    report: Callable[[float, int], None]
    last_value: float | None = None
    last_step: int | None = None
    last_lines: deque[str] = field(default_factory=lambda: deque(maxlen=LAST_LINES))
    _current_step: int | None = None  # the step that was found last, or counted

    def read_line(self, line: str) -> None:
        """Notes the step in a line, and reports the value in it, if there are any.

        A command that starts from scratch prints earlier steps again; only their first values
        count.

        Raises:
            CommandFailed: the match is not a number.
        """
        self._note_line(line)
        if self.step is not None:
            step_match = re.search(self.step, line)
            if step_match is not None:
                self._current_step = int(self._parse("step", step_match, int))
        value_match = re.search(self.value, line)
        if value_match is None:
            return
        value = self._parse("value", value_match, float)
        if self.step is None:  # values are counted
            self._current_step = (self._current_step or 0) + 1
        step = self._current_step
        if step is None:  # the value comes before the first step
            return
        if self.last_step is None or step > self.last_step:
            self.last_step = step
            self.last_value = value
            self.report(value, step)

    def end(self) -> None:
        """Ends the output: no further line comes."""

    def _note_line(self, line: str) -> None:
        """Keeps a line for errors, unless it is blank."""
        if line.strip():
            self.last_lines.append(shorten(line.rstrip(), MAX_SHOWN_WIDTH))

    def _parse(self, group: str, match: re.Match[str], kind: type[int] | type[float]) -> float:
        """Returns the number in a named group of a match, or in its only group without names.

        Args:
            kind: int or float.

        Raises:
            CommandFailed: the text is not such a number.
        """
        if group in match.re.groupindex:
            text = match[group]
        else:
            text = match[1]
        try:
            return kind(text)
        except (TypeError, ValueError):
            noun = "number"
            if kind is int:
                noun = "integer"
            raise self.make_error(
                f"objective.{group} found {text!r}, which is not a valid {noun}, with the pattern "
                f"{match.re.pattern}"
            ) from None

    def make_error_without_value(self) -> CommandFailed:
        """Makes the error that the command has printed no value."""
        return self.make_error(f"objective.value found nothing, with the pattern {self.value}")

    def make_error(self, reason: str) -> CommandFailed:
        """Makes an error that holds the last lines, and shows some of them in its message."""
        printed = "it printed nothing"
        if self.last_lines:
            shown_lines = [*self.last_lines][-LAST_LINES_SHOWN:]
            printed = f"the last lines that the command printed: {' | '.join(shown_lines)}"
        return CommandFailed(f"{reason}; {printed}", "\n".join(self.last_lines))


def remove_files(run: Run) -> None:
    """Removes the files that earlier attempts at a trial have left in its folder."""
    shutil.rmtree(run.dir, ignore_errors=True)
    run.dir.mkdir(parents=True, exist_ok=True)


def read_earlier_lines(output_file: Path) -> Iterator[str]:
    """Yields the lines that earlier attempts at a trial have printed, without an incomplete one.

    A kill may have cut the last line. It is removed from the file too, since the first line of the
    next attempt would continue it.
    """
    if not output_file.exists():
        return
    length_of_complete_lines = output_file.read_bytes().rfind(b"\n") + 1
    os.truncate(output_file, length_of_complete_lines)
    yield from _read_lines(output_file, start=0, has_ended=lambda: True)


def _read_lines(path: Path, start: int, has_ended: Callable[[], bool]) -> Iterator[str]:
    """Yields the lines of a file that another process may still write, until it has ended.

    A carriage return ends a line too: progress bars write one after each step. A very long line
    is yielded in pieces, so that it takes little memory.

    Args:
        start: the position of the first byte to read.
        has_ended: returns whether the file grows no more.
    """
    line = ""
    with path.open(encoding="utf-8", errors="replace") as file:
        file.seek(start)
        while True:
            # Checked before the read: if the file grew no more by then, the read reaches its end.
            is_last_read = has_ended()
            text = file.readline(MAX_LINE_LENGTH)
            line += text
            if line.endswith("\n") or len(line) >= MAX_LINE_LENGTH:
                yield line.removesuffix("\n")
                line = ""
            elif not text and is_last_read:
                break
            elif not text:
                time.sleep(POLL_INTERVAL)
    if line:
        yield line


@contextlib.contextmanager
def run_process(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    output: Path,
    folder: Path | None = None,
) -> Iterator[tuple[subprocess.Popen[bytes], Iterator[str]]]:
    """Runs a command while the body reads its output; after the body all its processes have ended.

    It is the leader of a new process group. If this process is killed, so is the command.

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
                _end_processes(process)


def _end_processes(leader: subprocess.Popen[bytes]) -> None:
    """Ends a process group: with SIGTERM, and after a few seconds with SIGKILL.

    Child processes of the leader that have left the group are killed too. The children are listed
    while the leader runs, since they have another parent after its end.
    """
    processes: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        leader_process = psutil.Process(leader.pid)
        processes = leader_process.children(recursive=True)
        processes.append(leader_process)
    signal_group(leader.pid, signal.SIGTERM)
    try:
        psutil.wait_procs(processes, timeout=SECONDS_TO_END)
    finally:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        signal_group(leader.pid, signal.SIGKILL)
        leader.wait()
