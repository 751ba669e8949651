"""From the words of `studyloom tune` to a `Search`: the program, and its arguments with ranges."""

import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from studyloom.errors import ConfigError, raise_if_any
from studyloom.extras.tune.declared_arguments import (
    DeclaredArgument,
    ScriptArguments,
    read_arguments,
)
from studyloom.extras.tune.search import Hyperparameter, Search, choose_placeholder, escape_braces
from studyloom.extras.tune.value_ranges import BOOLEANS, Scalar, Values, parse_values
from studyloom.metrics import Direction
from studyloom.text import nearest

# Programs that start the script among their arguments: their own arguments are never searched.
LAUNCHERS = re.compile(
    r"python[\d.]*|torchrun|accelerate|deepspeed|uv|poetry|pdm|hatch|pixi|conda|mamba|mpirun|mpiexec"
    r"|srun|horovodrun|ipython|env|nice|taskset|numactl|time|xvfb-run"
)
# The options of `studyloom tune` itself.
OWN_OPTIONS = (
    *("--maximize", "--minimize", "--sweep", "--trials", "--workers", "--name"),
    *("--value", "--step", "--test", "--fixed", "--set"),
)
SEEDS = ("seed", "random_seed", "manual_seed", "manualSeed", "rng_seed")
# An argument that names its value: --lr=0.1, or Hydra's lr=0.1, +lr=0.1 and optimizer.lr=0.1.
ASSIGNMENT = re.compile(
    r"(?P<name>-{1,2}[\w.-]+|\+{0,2}[A-Za-z_][\w./@-]*)=(?P<value>.*)", re.DOTALL
)
OPTION = re.compile(r"-{1,2}[A-Za-z_][\w.-]*")


@dataclass(frozen=True)
class Program:
    """The program of a command line.

    Attributes:
        prefix: the words up to the script, such as torchrun --nproc_per_node=2 train.py.
        arguments: the words after it.
        script: the Python file that it runs; None for another program.
    """

    prefix: tuple[str, ...]
    arguments: tuple[str, ...]
    script: Path | None

    @property
    def label(self) -> str:
        """The program in messages: train.py, or the name of its executable."""
        if self.script is not None:
            return self.script.name
        return Path(self.prefix[0]).name


@dataclass(frozen=True)
class ParsedSearch:
    """A search, and the lines that a user should read before it begins.

    Attributes:
        budget: where the number of trials comes from, such as "run_cap: 6"; "" for the default.
    """

    search: Search
    notes: tuple[str, ...]
    budget: str = ""


def find_program(command_line: Sequence[str]) -> Program:
    """Finds the program at the beginning of some words: a script, a module or an executable.

    Args:
        command_line: the program and its arguments. A Python file or `-m MODULE` gets the
            interpreter of this process.

    Raises:
        ConfigError: there is no such file or module.
    """
    if not command_line:
        raise ConfigError(
            "studyloom tune needs a program, such as: studyloom tune --maximize val_acc train.py "
            "--lr 1e-4:1e-1:log"
        )
    first, *arguments = command_line
    if first.endswith(".py"):
        if not Path(first).is_file():
            raise ConfigError(f"{first}: there is no such file in {Path.cwd()}")
        return Program((find_python(), first), tuple(arguments), Path(first))
    if first == "-m":
        command_line = [find_python(), *command_line]
    for index in range(1, len(command_line)):
        script = _find_script(command_line, index)
        has_values_before = any(_has_values(word) for word in command_line[1:index])
        is_launcher = LAUNCHERS.fullmatch(Path(command_line[0]).name) is not None
        if script is not None and (is_launcher or not has_values_before):
            return _split(command_line, index + 1, script)
    if first == "-m":  # an installed module
        return _split(command_line, 3, None)
    return Program((first,), tuple(arguments), None)


def _split(command_line: Sequence[str], length: int, script: Path | None) -> Program:
    """Returns the program whose prefix is so many words long."""
    return Program(tuple(command_line[:length]), tuple(command_line[length:]), script)


def find_python() -> str:
    """Returns the interpreter of this process: as `python`, if that is what PATH has."""
    executable = Path(sys.executable)
    on_path = shutil.which("python")
    if on_path is not None and Path(on_path).parent == executable.parent:
        return "python"
    return str(executable)


def _find_script(command_line: Sequence[str], index: int) -> Path | None:
    """Returns the Python file that a word names, itself or as a module; None if it names none."""
    word = command_line[index]
    if word.endswith(".py") and Path(word).is_file():
        return Path(word)
    if command_line[index - 1] in ("-m", "--module"):
        module = Path(*word.split("."))
        for file in (module.with_suffix(".py"), module / "__main__.py"):
            if file.is_file():
                return file
    return None


def _has_values(word: str) -> bool:
    """Returns True if a word is, or assigns, a range or list."""
    match = ASSIGNMENT.fullmatch(word)
    if match is not None:
        word = match["value"]
    try:
        return parse_values("", word) is not None
    except ConfigError:
        return True


def parse_search(
    command_line: Sequence[str],
    *,
    metric: str,
    direction: Direction,
    fixed: Sequence[str] = (),
    value: str = "",
    step: str | None = None,
) -> ParsedSearch:
    """Parses a program and its arguments into a search.

    Args:
        command_line: the program and its arguments, some with a range or list as value.
        metric: the name of the value in the output.
        fixed: arguments that are passed as they are, although their value looks like a range.
        value: a regular expression for the value; "" to look for the name of the metric.
        step: a regular expression for the step.

    Raises:
        ConfigError: every error in them; the script cannot take the values; nothing is searched; an
            option of `studyloom tune` is among the arguments of a script that does not declare it.
    """
    program = find_program(command_line)
    arguments = ScriptArguments()
    if program.script is not None:
        arguments = read_arguments(program.script, program.arguments)
    parser = _ArgumentParser(program, arguments, fixed)
    parser.parse()
    if program.script is not None and not arguments.reads_arguments:
        raise ConfigError(_explain_missing_arguments(program, arguments, parser.options))
    parser.check_own_options(start=command_line[0])
    raise_if_any(parser.errors)
    if not parser.hyperparameters:
        raise ConfigError(
            f"none of the arguments of {program.label} has a range or a list as its value; give "
            "one, such as --lr 1e-4:1e-1:log, --width 16:256 or --act relu,gelu"
        )
    search = Search(
        name=make_name(program),
        command=[*program.prefix, *parser.command],
        hyperparameters=parser.hyperparameters,
        metric=metric,
        direction=direction,
        value=value,
        step=step,
    )
    return ParsedSearch(search, (parser.describe_baseline(), *parser.notes))


@dataclass(frozen=True)
class Test:
    """How the winner is tested.

    Attributes:
        value: the name of the value on the test set, or a regular expression with a group; "" for
            the name of the metric.
        command: the words of a program that prints it; empty if the script itself does.
    """

    value: str = ""
    command: tuple[str, ...] = ()


def parse_test(texts: Sequence[str]) -> Test:
    """Parses the values of `--test`: the name of a value or a pattern, a program, or both.

    A program is a Python file, or a command that names a file or module.

    Raises:
        ConfigError: there are two names, or two programs.
    """
    test = Test()
    for text in texts:
        command = _split_test_program(text)
        names_file = any(Path(word).is_file() for word in command) or "-m" in command
        if names_file and not test.command:
            program = find_program(command)
            test = replace(test, command=(*program.prefix, *program.arguments))
        elif not names_file and not test.value:
            test = replace(test, value=text)
        else:
            raise ConfigError(
                f"--test {text}: may be given twice, with a program, such as 'evaluate.py --last', "
                "and with the name of the value that it prints"
            )
    return test


def _split_test_program(text: str) -> list[str]:
    """Splits a value of `--test` into the words of a program; empty if it can be none.

    A pattern has a parenthesis. A name or a pattern may have a quote that does not close.
    """
    if "(" in text:
        return []
    try:
        return shlex.split(text)
    except ValueError:
        return []


def make_name(program: Program) -> str:
    """Returns the name of a study of a program: train for train.py."""
    stem = Path(program.label).stem
    if program.script is not None and stem == "__main__":
        stem = program.script.resolve().parent.name
    if program.prefix[-2:-1] == ("-m",):
        stem = program.prefix[-1].rpartition(".")[2]
    return re.sub(r"[^\w.-]", "_", stem).strip(".")


def _explain_missing_arguments(
    program: Program, arguments: ScriptArguments, options: Sequence[str]
) -> str:
    """Explains that a script reads no arguments, and which of its constants could become some."""
    message = (
        f"{program.label} reads no arguments (argparse, click, typer, Hydra, sys.argv, …), so that "
        f"{', '.join(options)} would change nothing"
    )
    constants = {constant.lower(): constant for constant in arguments.constants}
    for option in options:
        key = option.lstrip("-").replace("-", "_").lower()
        name = constants.get(key)
        if name is not None:
            constant = arguments.constants[name]
            return (
                f"{message}; line {constant.line} has {name} = {constant.value!r}: read it from "
                f'the command line, such as parser.add_argument("{option}", '
                f"type={type(constant.value).__name__}, default={constant.value!r})"
            )
    hint = nearest(options[0].lstrip("-"), arguments.constants) if options else ""
    return f"{message}; add an argument to it, such as by argparse{hint}"


@dataclass
class _ArgumentParser:
    """Parses the arguments of a program: each is searched, or passed as it is.

    Attributes:
        command: the words of the command of a trial, with placeholders.
        options: the arguments that are searched, as typed.
        baselines: for each hyperparameter, its value in the baseline and where that comes from.
    """

    program: Program
    arguments: ScriptArguments
    fixed: Sequence[str]
    command: list[str] = field(default_factory=list)
    hyperparameters: list[Hyperparameter] = field(default_factory=list)
    options: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    baselines: list[str] = field(default_factory=list)

    def parse(self) -> None:
        """Parses the arguments, and adds the seed of the trial if the program takes one."""
        option = ""  # the option before the current word
        for word in self.program.arguments:
            match = ASSIGNMENT.fullmatch(word)
            if match is not None:
                self._parse_value(match["name"], match["value"], prefix=f"{match['name']}=")
                option = ""
            elif OPTION.fullmatch(word):
                option = word
                self.command.append(escape_braces(word))
            else:
                self._parse_value(option, word, prefix="")
        self._add_seed()

    def check_own_options(self, start: str) -> None:
        """Notes an error for each option of `studyloom tune` among the arguments of a script.

        Only a script whose parser was read is known not to have the option: one that declares an
        argument that is searched.

        Args:
            start: the first word of the program as typed, such as train.py or torchrun.
        """
        if not any(self.arguments.declares(option) for option in self.options):
            return
        fixed_keys = {_key_of(name) for name in self.fixed}
        for word in self.program.arguments:
            option = word.partition("=")[0]
            is_own = option in OWN_OPTIONS and _key_of(option) not in fixed_keys
            if is_own and not self.arguments.declares(option):
                self.errors.append(
                    f"{option} is an option of studyloom tune: put it before {start}; "
                    f"if {self.program.label} has it too, put --fixed {_key_of(option)} there"
                )

    def _parse_value(self, option: str, text: str, prefix: str) -> None:
        """Parses the value of an option, or a positional argument.

        Args:
            option: the option; "" for a positional argument.
            prefix: what stands before the value in its word, such as --lr=.
        """
        is_fixed = _key_of(option) in {_key_of(name) for name in self.fixed}
        values = None
        try:
            if not is_fixed:
                values = parse_values(option, text)
        except ConfigError as error:
            self.errors += error.errors
            return
        if values is None:
            self.command.append(escape_braces(prefix + text))
            return
        if not option:
            self.errors.append(
                f"{text}: a range must follow the name of an argument, such as --lr {text}"
            )
            return
        self.options.append(option)
        if _key_of(option) in SEEDS:
            self.errors.append(
                f"{option} {text}: the seed is no hyperparameter, since the best seed is only "
                "luck; leave it out, and each trial gets a seed of its own"
            )
            return
        declared = self.arguments.find(option, self.program.arguments)
        self._add_hyperparameter(option, text, values, prefix, declared)

    def _add_hyperparameter(
        self,
        option: str,
        text: str,
        values: Values,
        prefix: str,
        declared: DeclaredArgument | None,
    ) -> None:
        """Adds a hyperparameter, and its placeholder to the words of the command.

        Args:
            text: its range or list, as typed.
        """
        names = [hyperparameter.name for hyperparameter in self.hyperparameters]
        name = choose_placeholder(option.lstrip("-+"), names)
        flag: tuple[str, ...] = ()
        if declared is not None and declared.flag and values.are_booleans:
            flag = declared.flag
            items = tuple(BOOLEANS[str(item).lower()] for item in values.items)
            values = replace(values, items=items, default=_to_boolean(values.default))
            if not prefix:
                self.command.pop()  # the option, which the flag replaces
            self.command.append("{" + name + "}")
        else:
            has_negative = any(isinstance(item, int | float) and item < 0 for item in values.items)
            if not prefix and has_negative:
                prefix = self._choose_prefix_of_negative(option, text, declared)
                if prefix:
                    self.command.pop()  # the option, which the prefix contains
            self.command.append(escape_braces(prefix) + "{" + name + "}")
        self._check_type(option, values, declared)
        baseline = choose_baseline(option.lstrip("-+"), values, declared, self.program)
        self.baselines.append(baseline.description)
        values = replace(values, default=baseline.value)
        self.hyperparameters.append(Hyperparameter(name, values, flag))

    def _choose_prefix_of_negative(
        self, option: str, text: str, declared: DeclaredArgument | None
    ) -> str:
        """Chooses what stands before a negative value in its word; "" to have it alone in a word.

        argparse would take -1e-05 for an option. All parsers read --x=-1e-05. Of short options,
        argparse reads -x=-1e-05, and others read = as the first character of the value.
        """
        is_of_argparse = declared is not None and declared.parser != ""
        if option.startswith("--") or is_of_argparse:
            return f"{option}="
        if declared is None:
            self.notes.append(
                f"{option} gets a negative value as the next word, which some programs take for an "
                f"option; {option}={text} gives it in one word"
            )
        return ""

    def _check_type(self, option: str, values: Values, declared: DeclaredArgument | None) -> None:
        """Notes an error if the script takes integers only, and a line if it takes floats."""
        if declared is None or values.kind == "choice" or declared.flag:
            return
        low, high = values.items
        if declared.type is int and values.kind == "float":
            self.errors.append(
                f"{option} {low}:{high} is a range of floats, and {self.program.label} takes an "
                f"integer ({declared.place}); write its ends without a point or exponent"
            )
        if declared.type is float and values.kind == "int":
            self.notes.append(
                f"{option} {low}:{high} gives integers only, and {self.program.label} takes a "
                f"float ({declared.place}); {float(low)}:{high} gives every number"
            )

    def describe_baseline(self) -> str:
        """Returns a line with the values of the baseline."""
        return describe_baselines(self.baselines)

    def _add_seed(self) -> None:
        """Adds the seed of the trial, if the program has an argument for it that is not given."""
        for word in self.program.arguments:
            match = ASSIGNMENT.fullmatch(word)
            option = word
            if match is not None:
                option = match["name"]
            if _key_of(option) in SEEDS:
                return  # a note before trial 0 says what that means
        for name in SEEDS:
            declared = self.arguments.find(name, self.program.arguments)
            if declared is None:
                continue
            option = max(declared.names, key=len)
            seed_arguments = [option, "{seed}"]
            is_hydra_key = not option.startswith("-")
            if is_hydra_key or self.arguments.is_configured:
                seed_arguments = [f"{option}={{seed}}"]
            if self.arguments.is_of_subcommand(declared):
                self.command += seed_arguments
            else:
                self.command = seed_arguments + self.command
            return


@dataclass(frozen=True)
class Baseline:
    """The value of a hyperparameter in the baseline.

    Attributes:
        description: the value and where it comes from, such as "lr=0.1 (train.py, line 7)".
    """

    value: Scalar
    description: str


def choose_baseline(
    name: str, values: Values, declared: DeclaredArgument | None, program: Program
) -> Baseline:
    """Chooses the value of the baseline: typed, declared by the program, or in the middle."""
    if values.default is not None:
        return Baseline(values.default, f"{name}={values.default}")
    default = None
    if declared is not None:
        default = declared.default
    if default is None:
        middle = _find_middle(values)
        reason = f"the middle, since {program.label} shows no default"
        return Baseline(middle, f"{name}={middle} ({reason})")
    assert declared is not None
    nearest_value = _find_nearest(values, default)
    if nearest_value is None:
        middle = _find_middle(values)
        return Baseline(middle, f"{name}={middle} (the default {default} is not in the list)")
    source = declared.place
    if not _is_same(nearest_value, default):
        source = f"the nearest to the default {default}, which is outside"
    return Baseline(nearest_value, f"{name}={nearest_value} ({source})")


def describe_baselines(descriptions: Sequence[str]) -> str:
    """Returns a line with the values of the baseline."""
    return f"baseline  {', '.join(descriptions)}"


def _key_of(option: str) -> str:
    """Returns the name of an option without dashes: weight_decay for --weight-decay."""
    return option.lstrip("-+").replace("-", "_")


def _to_boolean(value: Scalar | None) -> Scalar | None:
    """Returns the boolean that a text of a list true,false means; None for None."""
    if value is None:
        return None
    return BOOLEANS[str(value).lower()]


def _find_middle(values: Values) -> Scalar:
    """Returns the middle of a range, on its scale, or the first item of a list."""
    if values.kind == "choice":
        return values.items[0]
    low, high = float(values.items[0]), float(values.items[1])
    middle = (low + high) / 2
    if values.log:
        middle = (low * high) ** 0.5
    return _snap(values, float(f"{middle:.4g}"))


def _snap(values: Values, number: float) -> Scalar:
    """Returns the value of a range that is nearest to a number."""
    low, high = float(values.items[0]), float(values.items[1])
    number = min(max(low, number), high)
    if values.step is not None:
        steps = min(round((number - low) / values.step), int((high - low) / values.step + 1e-9))
        number = float(f"{low + steps * values.step:.12g}")
    if values.kind == "int":
        return round(number)
    return number


def _find_nearest(values: Values, default: object) -> Scalar | None:
    """Returns the value that is nearest to a default; None if a list does not have it."""
    if values.kind == "choice":
        for item in values.items:
            if _is_same(item, default):
                return item
        return None
    if isinstance(default, bool) or not isinstance(default, int | float):
        return None
    return _snap(values, float(default))


def _is_same(value: Scalar, default: object) -> bool:
    """Returns True if a script gets the same value: 0.1 for 0.1, and 16 for "16"."""
    if isinstance(value, int | float) and isinstance(default, int | float):
        return value == default and isinstance(value, bool) == isinstance(default, bool)
    return str(value) == str(default)
