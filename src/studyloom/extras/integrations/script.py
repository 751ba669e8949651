"""A training script as the objective: a command whose values are found by their printed name."""

import math
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from studyloom.config.values import value_at
from studyloom.errors import CommandFailed
from studyloom.extras.integrations.command import (
    Command,
    Output,
    ProgramOfTrial,
    check_pattern,
    collect_placeholder_values,
    fill_placeholders,
    read_earlier_lines,
    remove_files,
)
from studyloom.extras.integrations.printed_values import (
    STEP_KINDS,
    NamedValueReader,
    PrintedNumber,
    clean_line,
    find_named_numbers,
    find_steps,
    find_unnamed_numbers,
    suggest_name,
)
from studyloom.objectives.loop_run import Run

KEPT = "test"  # the name of the value on the test set among what a training keeps
NAMES_SHOWN = 12  # of the values that an error lists
GIVEN = "given"  # the kind of the steps that a pattern finds
ENOUGH_DIGITS = 3  # with fewer significant digits, values of different trials are often equal


@dataclass(frozen=True)
class Script(Command):
    """Runs a script for each trial, and finds the value in its output by the name of the metric.

    The last value of a step counts. A step is the number after `epoch`, `step` or `iter`; without
    one, each value is a step.

    Args:
        run: the command, as that of `Command`.
        value: a regular expression, as that of `Command`; "" to look for the name
            `objective.metric`.
        step: a regular expression, as that of `Command`; None to look for the usual words.
        flags: options without a value, by the name of their hyperparameter, which is true or false:
            the words that the command gets in place of the placeholder. `[--amp]` is left out if
            the hyperparameter is false; of `[--amp, --no-amp]` the command gets one.
        test_value: the name of the value on the test set, or a regular expression with a group,
            which finds it; "" for the name of the metric. It needs
            `objective.test=studyloom.extras.integrations.script.read_test_value`.
        test_run: the command that prints this value after a training, in the training's folder;
            "" if the script itself prints it.
    """

    value: str = ""
    flags: Mapping[str, Sequence[str]] = field(default_factory=dict)
    test_value: str = ""
    test_run: str = ""

    @property
    def is_tested(self) -> bool:
        """True if the winner is tested, by a value that the script or another program prints."""
        return bool(self.test_value or self.test_run)

    @property
    def untested(self) -> str | None:
        """The reason why the winner is not tested; None if it is."""
        if self.is_tested:
            return None
        return (
            "no test was given (studyloom tune --test); what the script printed on new seeds is "
            "the result"
        )

    @property
    def resumes_from_files(self) -> bool:
        """True: a resumed trial finds its files, if its output has steps."""
        return True

    def _check_patterns(self) -> Iterator[str]:
        """Yields the errors in `value` and `step`."""
        if self.value:
            yield from check_pattern("value", self.value)
        if self.step is not None:
            yield from check_pattern("step", self.step)
        if "(" in self.test_value:
            yield from check_pattern("value", self.test_value, key="test_value")

    def __call__(self, config: Mapping[str, object], run: Run) -> float:
        """Runs the script to its end for a trial, and returns the last value that it printed.

        A training after the search also keeps its value on the test set, which only the test of the
        winner reads.

        Raises:
            CommandFailed: it printed no value, or ended with another code than 0.
        """
        if self.is_tested:
            run.keep_at_end(**{KEPT: TestValue()})
        return super().__call__(config, run)

    def _end_training(
        self, config: Mapping[str, object], program: ProgramOfTrial, output: Output
    ) -> None:
        """Keeps the value on the test set of a training after the search."""
        run = program.trial_run
        if not self.is_tested or run.stage == "search":
            return
        assert isinstance(output, ScriptOutput)
        if self.test_run:
            metric = str(value_at(config, "objective.metric"))
            output = ScriptOutput(
                "", None, _report_nothing, metric=metric, test_value=self.test_value
            )
            values = collect_placeholder_values(config, run)
            arguments = [fill_placeholders(word, values) for word in shlex.split(self.test_run)]
            program.run(arguments, run.dir / ".test", output)
            output.end()
        value = output.last_test_value
        if value is None and not self.test_value:
            value = output.last_value
        if value is None:
            raise output.make_error(
                f"nothing that was printed is the value on the test set, {self.test_value}"
            )
        run.keep_at_end(**{KEPT: TestValue(value)})

    def _list_seed_notes(self, config: Mapping[str, object]) -> Iterator[str]:
        """Yields a line if the script does not use the seed of the trial."""
        if value_at(config, "winner.enabled") is not False and not self._uses_seed():
            yield (
                "the script does not get the seed of its trial, so that new seeds change nothing; "
                "give it an argument --seed that sets its seed, and leave it out of the command"
            )

    def _make_arguments(self, values: Mapping[str, object]) -> list[str]:
        """Returns the words of the command of a trial, with the flags that are set."""
        arguments = []
        for word in shlex.split(self.run):
            flag = self.flags.get(word[1:-1])
            if flag is None or word[0] != "{":
                arguments.append(fill_placeholders(word, values))
            elif values[word[1:-1]]:
                arguments.append(flag[0])
            else:
                arguments += flag[1:]
        return arguments

    def _read_earlier_output(
        self, config: Mapping[str, object], run: Run, output_file: Path
    ) -> "ScriptOutput":
        """Returns the output of a trial, with the lines that earlier attempts have printed.

        If values without steps are among them, they are counted, so that the script must start from
        scratch: the files of the trial are removed.
        """
        metric = str(value_at(config, "objective.metric"))
        lines = [*read_earlier_lines(output_file)]
        earlier_output = ScriptOutput(self.value, self.step, _report_nothing, metric=metric)
        for line in lines:
            earlier_output.read_line(line)
        output = ScriptOutput(
            self.value,
            self.step,
            report=run,
            metric=metric,
            test_value=self.test_value,
            warn=run.warn,
        )
        if earlier_output.counts_values:
            remove_files(run)
            return output
        for line in lines:
            output.read_line(line)
        output.begin_attempt()
        return output


@dataclass
class TestValue:
    """The value of a training on the test set, which `run.keep_at_end` keeps."""

    value: float = math.nan

    def state_dict(self) -> dict[str, float]:
        """Returns the value, as a training keeps it."""
        return {"value": self.value}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Takes the value that a training has kept."""
        self.value = state["value"]


def read_test_value(config: Mapping[str, object], run: Run, dataset: object) -> float:
    """Returns the value on the test set that a training of the winner has printed.

    It is the function `objective.test` of a study of a `Script`.
    """
    kept = TestValue()
    run.keep(**{KEPT: kept})
    return kept.value


def _report_nothing(value: float, step: int) -> None:
    """Stands in for the report of a value that was printed in an earlier attempt."""


def _warn_nobody(message: str) -> None:
    """Stands in for the warning of a run."""


@dataclass
class ScriptOutput(Output):
    """Finds named values and their steps in lines, and reports the last value of each step.

    A value is reported when the next step begins. Once the first step has shown how many values a
    step has, the last one of them is reported at once.

    Args:
        value: the pattern of a value; "" to look for the name of the metric.
        step: the pattern of a step; None to look for the words epoch, step and iter.
        metric: the name of the value, or one that differs in blanks, `_`, `-` and case only.
        test_value: the name of another value, or a pattern with a group, which finds it.
        warn: called with a line about the values that were printed.

    Attributes:
        counts_values: whether values are counted, since the first one came without a step.
        last_test_value: the last value that `test_value` has found.
    """

    metric: str = ""
    test_value: str = ""
    warn: Callable[[str], None] = _warn_nobody
    counts_values: bool = False
    last_test_value: float | None = None
    _reader: NamedValueReader = field(init=False)
    _test_reader: NamedValueReader = field(init=False)
    _steps: dict[str, int] = field(default_factory=dict)  # the last ones, by their kind
    _step_kind: str | None = None  # the kind that counts, once the first value is known
    _pending_value: float | None = None  # the last value of the step that has not ended
    _pending_step: int | None = None
    _values_of_step: int = 0  # how many values of the pending step were printed
    _values_per_step: int | None = None  # in the first step; None until it has ended
    _digits: list[int] = field(default_factory=list)  # the significant digits of each value
    _named_numbers: dict[str, str] = field(default_factory=dict)  # numbers by name, for errors

    def __post_init__(self) -> None:
        self._reader = NamedValueReader(self.metric)
        self._test_reader = NamedValueReader(self.test_value)

    def begin_attempt(self) -> None:
        """Notes that the next line is the first of another attempt, which may print steps again."""
        self._values_of_step = 0

    def read_line(self, line: str) -> None:
        """Notes the steps and the value in a line, and reports a value whose step has ended.

        Raises:
            CommandFailed: the match of a pattern is not a number.
        """
        self._note_line(line)
        # Once there is a value, no error lists the names. argparse's Namespace prints as the
        # script's own arguments, such as lr=0.1, which are no results.
        if not self._digits and "Namespace(" not in line:
            self._named_numbers |= find_named_numbers(line)
        if self.test_value:
            self._read_test_value(line)
        number = self._find_value(line)
        steps = self._find_steps(line)
        if number is not None:
            steps = {**steps, **number.steps}
        self._steps |= steps
        if number is not None and not self._digits:
            self._choose_step_kind(steps)
        has_next_step = self._pending_step is not None and self._step_of_line > self._pending_step
        if has_next_step:
            self._report_pending()
        if number is not None:
            self._digits.append(number.significant_digits)
            self._take_value(float(number.text))

    def end(self) -> None:
        """Reports the value of the last step, and warns of values with few digits."""
        if self._pending_step is not None:
            self._report_pending()
        have_few_digits = len(self._digits) > 1 and max(self._digits) < ENOUGH_DIGITS
        if have_few_digits:
            self.warn(
                f"{self.metric} is printed with fewer than {ENOUGH_DIGITS} digits, so that trials "
                "may tie; print more digits"
            )

    def _find_value(self, line: str) -> PrintedNumber | None:
        """Returns the value in a line: the match of the pattern, or the number after the name."""
        if not self.value:
            return self._reader.read(line)
        match = re.search(self.value, line)
        if match is None:
            return None
        self._parse("value", match, float)  # raises an error if it is not a number
        text = match[1]
        if "value" in match.re.groupindex:
            text = match["value"]
        return PrintedNumber(text.strip(), {})

    def _read_test_value(self, line: str) -> None:
        """Notes the value on the test set in a line, if there is one."""
        if "(" in self.test_value:
            match = re.search(self.test_value, line)
            if match is not None:
                self.last_test_value = self._parse("value", match, float)
            return
        number = self._test_reader.read(line)
        if number is not None:
            self.last_test_value = float(number.text)

    def _find_steps(self, line: str) -> dict[str, int]:
        """Returns the steps in a line, by their kind; the pattern of a step is the kind given."""
        if self.step is None:
            return find_steps(clean_line(line))
        match = re.search(self.step, line)
        if match is None:
            return {}
        return {GIVEN: int(self._parse("step", match, int))}

    def _choose_step_kind(self, steps: Mapping[str, int]) -> None:
        """Chooses the kind of the steps at the first value: one in its line, else an earlier one.

        Without any, the values are counted.

        Args:
            steps: the steps in the line of the value.
        """
        if self.step is not None:
            self._step_kind = GIVEN
            return
        for candidates in (steps, self._steps):
            for kind in STEP_KINDS:
                if kind in candidates:
                    self._step_kind = kind
                    return
        self.counts_values = True

    @property
    def _step_of_line(self) -> int:
        """The step of the last lines; -1 before the first step."""
        if self._step_kind is None:
            return -1
        return self._steps.get(self._step_kind, -1)

    def _take_value(self, value: float) -> None:
        """Notes a value, and reports it if it is the last one of its step."""
        if self.counts_values:
            self.last_step = (self.last_step or 0) + 1
            self.last_value = value
            self.report(value, self.last_step)
            return
        step = self._step_of_line
        last_step = -1
        if self._pending_step is not None:
            last_step = self._pending_step
        elif self.last_step is not None:
            last_step = self.last_step
        # A script that starts from scratch prints earlier steps again.
        if step < max(last_step, 0):
            return
        if step == self.last_step:  # its value was reported: the first step had fewer values
            self.last_value = value
            return
        self._pending_step = step
        self._pending_value = value
        self._values_of_step += 1
        if self._values_of_step == self._values_per_step:
            self._report_pending()

    def _report_pending(self) -> None:
        """Reports the last value of the pending step."""
        assert self._pending_value is not None
        assert self._pending_step is not None
        value = self._pending_value
        step = self._pending_step
        if self._values_per_step is None:
            self._values_per_step = self._values_of_step
        self._pending_value = None
        self._pending_step = None
        self._values_of_step = 0
        self.last_value = value
        self.last_step = step
        self.report(value, step)

    def make_error_without_value(self) -> CommandFailed:
        """Makes the error that no line has the value, with the names and numbers found."""
        if self.value:
            return super().make_error_without_value()
        if self._digits:
            return self.make_error(
                f"the script printed no step before its values of {self.metric}, with the pattern "
                f"{self.step}"
            )
        printed = [f"{name} {number}" for name, number in self._named_numbers.items()]
        numbers: list[str] = []
        for line in self.last_lines:
            numbers += find_unnamed_numbers(line)
        reason = f"the script printed no value of {self.metric}"
        hint = suggest_name(self.metric, self._named_numbers)
        if hint:
            reason += f" ({hint})"
        if printed:
            reason += f"; it printed {', '.join(printed[:NAMES_SHOWN])}"
        if numbers:
            reason += f"; numbers without a name: {', '.join(numbers[-NAMES_SHOWN:])}"
        error = self.make_error(reason)
        advice = "name a value that it prints, or find it by a regular expression (--value)"
        return CommandFailed(f"{error}; {advice}", error.output)
