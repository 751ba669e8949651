"""From a W&B sweep file to a `Search`: its program, method, metric, command and early ends.

The file is data: it is read by a safe YAML loader. Everything in it that has no counterpart is an
error, which names the key and the nearest thing; all of them come at once.
"""

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import yaml  # type: ignore[import-untyped]

from studyloom.errors import ConfigError, raise_if_any
from studyloom.extras.tune.command_line import (
    SEEDS,
    ParsedSearch,
    Program,
    choose_baseline,
    describe_baselines,
    find_program,
    find_python,
    make_name,
)
from studyloom.extras.tune.declared_arguments import ScriptArguments, read_arguments
from studyloom.extras.tune.search import Hyperparameter, Search, choose_placeholder, escape_braces
from studyloom.extras.tune.sweep_parameters import (
    Parameter,
    ParameterReader,
    format_item,
    read_number,
)
from studyloom.extras.tune.value_ranges import Values
from studyloom.text import nearest

MOST_BYTES = 1_000_000  # of a sweep file
DEFAULT_COMMAND = ("${env}", "${interpreter}", "${program}", "${args}")  # W&B's own
MACRO = re.compile(r"\$\{(?P<name>\w+)\}")  # a word such as ${args}
VARIABLE = re.compile(r"\$\{envvar:(?P<name>\w+)\}")  # an environment variable within a word
# Keys that say where W&B shows a sweep; they change nothing here.
LABELS = ("name", "description", "project", "entity", "$schema")
KEYS = ("program", "command", "method", "metric", "parameters", "early_terminate", "run_cap")
METHODS = ("grid", "random", "bayes")


@dataclass(frozen=True)
class ArgumentForm:
    """A form in which a command gets the parameters, such as `--lr=0.1` of ${args}.

    Attributes:
        prefix: what stands before the name.
        separates: whether name and value are two words.
        omits_false: whether a boolean is an option without a value, left out if it is false.
    """

    prefix: str = "--"
    separates: bool = False
    omits_false: bool = False


FORMS: Mapping[str, ArgumentForm] = {
    "args": ArgumentForm(),
    "args_no_equals": ArgumentForm(separates=True),
    "args_no_hyphens": ArgumentForm(prefix=""),
    "args_no_boolean_flags": ArgumentForm(omits_false=True),
    "args_append_hydra": ArgumentForm(prefix="+"),
    "args_override_hydra": ArgumentForm(prefix="++"),
}


LOGGED = "W&B"  # begins the lines with values that the script has logged by W&B
JSON_FORMS = ("args_json", "args_json_file")  # which `sweep_run` fills in


def read_sweep(path: Path) -> Mapping[object, object]:
    """Reads a sweep file.

    Raises:
        ConfigError: it cannot be read, or is no mapping.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ConfigError(f"{path}: has more than {MOST_BYTES:,} bytes, as no sweep file has")
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; --sweep needs a W&B sweep file") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: is no valid YAML: {reason}") from None
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path}: must be a mapping with program, method and parameters")
    return content


def parse_sweep(path: Path) -> ParsedSearch:
    """Parses a sweep file into a search.

    Raises:
        ConfigError: every key that is wrong, or that has no counterpart.
    """
    return _SweepParser(path, read_sweep(path)).parse()


@dataclass
class _SweepParser:
    """Parses a sweep, and collects its errors.

    Attributes:
        reader: has the parameters.
        needs_json: whether the command gets the parameters as JSON.
        names: the name of the placeholder of each parameter that is searched, by its path.
        flags: the words that stand for a boolean, by the name of its placeholder.
        written_as_texts: the placeholders of lists whose values stand in a mapping's text.
        budget: where the number of trials comes from, see `ParsedSearch`.
    """

    path: Path
    sweep: Mapping[object, object]
    reader: ParameterReader = field(default_factory=ParameterReader)
    needs_json: bool = False
    names: dict[tuple[str, ...], str] = field(default_factory=dict)
    flags: dict[str, tuple[str, ...]] = field(default_factory=dict)
    written_as_texts: set[str] = field(default_factory=set)
    budget: str = ""
    errors: list[str] = field(default_factory=list)

    def parse(self) -> ParsedSearch:
        """Parses the file.

        Raises:
            ConfigError: all errors in it.
        """
        self._check_keys()
        self.reader.read(self.sweep.get("parameters"))
        self.errors += self.reader.errors
        self._name_parameters()
        command = self._make_command()
        program = self._find_program()
        metric = self._section("metric", required=True)
        name = metric.get("name")
        if "metric" in self.sweep and not (isinstance(name, str) and name):
            self.errors.append(f"metric.name must name the logged value; got {name!r}")
        direction = self._read_direction(metric)
        target = self._read_target(metric)
        settings: dict[str, object] = {}
        settings |= self._read_method()
        settings |= self._read_early_end()
        trials = self._count_trials()
        raise_if_any([f"{self.path}: {error}" for error in self.errors])
        assert program is not None
        arguments = ScriptArguments()
        if program.script is not None:
            arguments = read_arguments(program.script)
        hyperparameters = []
        baselines = []
        for parameter in self._searched_parameters():
            assert parameter.values is not None
            placeholder = self.names[parameter.path]
            declared = arguments.find(parameter.path[-1])
            label = ".".join(parameter.path)
            baseline = choose_baseline(label, parameter.values, declared, program)
            baselines.append(baseline.description)
            values = replace(parameter.values, default=baseline.value)
            if placeholder in self.written_as_texts:
                texts = tuple(format_item(item) for item in values.items)
                values = replace(values, items=texts, default=format_item(values.default))
            flag = self.flags.get(placeholder, ())
            hyperparameters.append(Hyperparameter(placeholder, values, flag))
        logged = ""  # the metric, if W&B logs it
        value = ""
        step = None
        if arguments.uses_wandb:
            logged = str(name)
            value = rf"^{LOGGED} step \d+ {re.escape(logged)}=(?P<value>\S+)$"
            step = rf"^{LOGGED} step (?P<step>\d+) "
        search = Search(
            name=self._make_name(program),
            command=self._wrap(self._add_seed(command, arguments), logged),
            hyperparameters=hyperparameters,
            metric=str(name),
            direction=direction,
            value=value,
            step=step,
            trials=trials,
            target=target,
            settings=settings,
        )
        return ParsedSearch(search, (describe_baselines(baselines),), self.budget)

    def _section(self, key: str, *, required: bool = False) -> Mapping[object, object]:
        """Returns the mapping of a key; an empty one, with an error, if it is none."""
        section = self.sweep.get(key)
        if isinstance(section, Mapping):
            return section
        if section is not None or required:
            self.errors.append(f"{key} must be a mapping; got {section!r}")
        return {}

    def _check_keys(self) -> None:
        """Notes the keys that have no counterpart."""
        for key in self.sweep:
            if key not in (*KEYS, *LABELS):
                convertible_keys = ", ".join(KEYS)
                self.errors.append(
                    f"{key} has no counterpart; the keys of a sweep that have one are "
                    f"{convertible_keys}{nearest(key, KEYS)}"
                )

    def _searched_parameters(self) -> list[Parameter]:
        """Returns the parameters that are searched."""
        return [parameter for parameter in self.reader.parameters if parameter.values is not None]

    def _name_parameters(self) -> None:
        """Chooses the names of the placeholders, and refuses the seed as a hyperparameter."""
        searched_parameters = self._searched_parameters()
        if not searched_parameters and not self.errors:
            self.errors.append("parameters: all are fixed, so that there is nothing to search")
        for parameter in searched_parameters:
            if parameter.path[-1] in SEEDS:
                self.errors.append(
                    f"{parameter.key}: the seed is no hyperparameter, since the best seed is only "
                    "luck; leave it out, and each trial gets a seed of its own"
                )
            name = choose_placeholder(".".join(parameter.path), self.names.values())
            self.names[parameter.path] = name

    # The command

    def _make_command(self) -> list[str]:
        """Returns the words of the command of a trial, with placeholders."""
        template = self.sweep.get("command", DEFAULT_COMMAND)
        if isinstance(template, str):
            template = template.split()
        if not isinstance(template, Sequence) or not template:
            self.errors.append(f"command must be a list of words; got {template!r}")
            return []
        command: list[str] = []
        for word in map(str, template):
            match = MACRO.fullmatch(word)
            if match is None:
                command.append(escape_braces(VARIABLE.sub(_read_variable, word)))
            else:
                command += self._expand(match["name"])
        return command

    def _expand(self, macro: str) -> list[str]:
        """Returns the words that stand for a word such as ${args}."""
        if macro == "env":  # W&B's `/usr/bin/env` finds the program on PATH, as a command does
            return []
        if macro == "interpreter":
            return [find_python()]
        if macro == "program":
            return [escape_braces(str(self.sweep.get("program", "")))]
        form = FORMS.get(macro)
        if form is not None:
            return self._make_arguments(form)
        if macro in JSON_FORMS:
            self.needs_json = True
            return [f"{{{{{macro}}}}}"]  # which `sweep_run` replaces
        names = ("env", "interpreter", "program", *FORMS, *JSON_FORMS)
        self.errors.append(
            f"command: ${{{macro}}} has no counterpart; there are "
            f"{', '.join(names)}{nearest(macro, names)}"
        )
        return []

    def _make_arguments(self, form: ArgumentForm) -> list[str]:
        """Returns the words of all parameters, in their order; nested ones are a mapping's text."""
        arguments: list[str] = []
        for name, tree in _group(self.reader.parameters).items():
            start = escape_braces(f"{form.prefix}{name}")
            if isinstance(tree, Parameter):
                arguments += self._make_argument(form, start, tree)
            else:
                assert isinstance(tree, Mapping)
                arguments += _join(form, start, self._write_mapping(tree))
        return arguments

    def _make_argument(self, form: ArgumentForm, start: str, parameter: Parameter) -> list[str]:
        """Returns the words of a parameter.

        Args:
            start: the prefix and the name, such as --lr.
        """
        values = parameter.values
        if values is None:
            item = parameter.items[0]
            if form.omits_false and type(item) is bool:
                arguments = []
                if item:
                    arguments.append(start)
                return arguments
            return _join(form, start, escape_braces(format_item(item)))
        name = self.names[parameter.path]
        placeholder = "{" + name + "}"
        if not values.are_booleans or type(values.items[0]) is not bool:
            return _join(form, start, placeholder)
        if form.omits_false:
            self.flags[name] = (start,)
            return [placeholder]
        if form.separates:
            self.flags[name] = ("True", "False")
            return [start, placeholder]
        self.flags[name] = (f"{start}=True", f"{start}=False")
        return [placeholder]

    def _write_mapping(self, tree: Mapping[str, object]) -> str:
        """Writes nested parameters as Python does, such as {'lr': {optimizer.lr}}."""
        parts = []
        for name, child in tree.items():
            if isinstance(child, Parameter):
                text = self._write_value(child)
            else:
                assert isinstance(child, Mapping)
                text = self._write_mapping(child)
            parts.append(f"{name!r}: {text}")
        return "{" + ", ".join(parts) + "}"

    def _write_value(self, parameter: Parameter) -> str:
        """Writes the value of a nested parameter as Python does; a text gets quotes."""
        if parameter.values is None:
            return escape_braces(repr(parameter.items[0]))
        placeholder = "{" + self.names[parameter.path] + "}"
        if any(isinstance(item, str) for item in parameter.items):
            return f"'{placeholder}'"
        if parameter.values.kind == "choice":  # a command gets true where Python has True
            self.written_as_texts.add(self.names[parameter.path])
        return placeholder

    def _find_program(self) -> Program | None:
        """Finds the script that the command runs; None, with an error, if there is none."""
        template = self.sweep.get("command", DEFAULT_COMMAND)
        script = self.sweep.get("program")
        names_program = isinstance(template, Sequence) and "${program}" in template
        if script is None and names_program:
            self.errors.append("program: missing; name the script, such as train.py")
            return None
        try:
            if script is not None:
                return find_program([str(script)])
            if isinstance(template, Sequence) and not isinstance(template, str):
                plain_words = [str(word) for word in template if not MACRO.fullmatch(str(word))]
                return find_program(plain_words)
        except ConfigError as error:
            self.errors += [f"program: {line}" for line in error.errors]
        return None

    def _make_name(self, program: Program) -> str:
        """Returns the name of the study: that of the sweep, else that of its script."""
        name = re.sub(r"[^\w.-]+", "_", str(self.sweep.get("name") or "")).strip("._")
        return name or make_name(program)

    def _add_seed(self, command: list[str], arguments: ScriptArguments) -> list[str]:
        """Returns the command with the seed of the trial, if the script takes one."""
        names = {parameter.path[-1] for parameter in self.reader.parameters}
        if not names.isdisjoint(SEEDS):
            return command
        for name in SEEDS:
            declared = arguments.find(name)
            if declared is not None:
                option = max(declared.names, key=len)
                return [*command, f"{option}={{seed}}"]
        return command

    def _wrap(self, command: list[str], logged: str) -> list[str]:
        """Returns the command within `sweep_run`, which gives it what only a file can have.

        Args:
            logged: the metric that `sweep_run` reads in W&B's offline file; "" for none.
        """
        if not self.needs_json and not logged:
            return command
        file = escape_braces(os.path.relpath(self.path))
        wrapper = [find_python(), "-m", "studyloom.extras.tune.sweep_run"]
        if logged:
            wrapper += ["--logged", escape_braces(logged)]
        wrapper.append(file)
        for parameter in self._searched_parameters():
            path = escape_braces(".".join(parameter.path))
            wrapper.append(f"{path}={{{self.names[parameter.path]}}}")
        return [*wrapper, "--", *command]

    # The search

    def _read_direction(self, metric: Mapping[object, object]) -> Literal["maximize", "minimize"]:
        """Returns the direction of the metric."""
        for key in metric:
            if key not in ("name", "goal", "target"):
                self.errors.append(f"metric.{key}: no such key; a metric has name, goal, target")
        goal = metric.get("goal", "minimize")
        if goal == "maximize":
            return "maximize"
        if goal != "minimize":
            self.errors.append(f"metric.goal must be minimize or maximize; got {goal!r}")
        return "minimize"

    def _read_target(self, metric: Mapping[object, object]) -> float | None:
        """Returns the value of the metric that ends the search; None if the file has none."""
        target = metric.get("target")
        if target is None:
            return None
        try:
            return read_number("metric.target", target)
        except ConfigError as error:
            self.errors += error.errors
            return None

    def _read_method(self) -> dict[str, object]:
        """Returns the section of the sampler; none for bayes, which is the default."""
        method = self.sweep.get("method")
        if method == "random":
            return {"sampler": {"_target_": "optuna.samplers.RandomSampler"}}
        if method == "grid":
            target = "studyloom.decisions.samplers.GridSampler"
            return {"sampler": {"_target_": target, "seed": "${study.seed}"}}
        if method != "bayes":
            self.errors.append(
                f"method must be one of {', '.join(METHODS)}; got {method!r}"
                f"{nearest(method, METHODS)}"
            )
        return {}

    def _count_trials(self) -> int | None:
        """Returns the number of trials: `run_cap`, or all combinations of a grid."""
        run_cap = self.sweep.get("run_cap")
        if run_cap is not None and (type(run_cap) is not int or run_cap < 1):
            self.errors.append(f"run_cap must be an integer from 1; got {run_cap!r}")
            return None
        if run_cap is not None:
            self.budget = f"run_cap: {run_cap}"
        if self.sweep.get("method") != "grid":
            return run_cap
        sizes = []
        for parameter in self._searched_parameters():
            assert parameter.values is not None
            size = _count(parameter.values)
            if size is None:
                self.errors.append(
                    f"{parameter.key}: method grid needs a list of values, or a q_uniform or "
                    "int_uniform range"
                )
            else:
                sizes.append(size)
        combinations = math.prod(sizes)
        if run_cap is not None and run_cap <= combinations:
            return run_cap
        self.budget = f"all {combinations} combinations of the grid"
        return combinations

    def _read_early_end(self) -> dict[str, object]:
        """Returns the section of the pruner, which ends weak trials at the same iterations."""
        section = self._section("early_terminate")
        if not section:
            return {"pruner": {"_target_": "optuna.pruners.NopPruner"}}
        kind = section.get("type")
        if kind != "hyperband":
            self.errors.append(
                f"early_terminate.type: {kind} has no counterpart; the nearest is hyperband with "
                "min_iter"
            )
            return {}
        for key in section:
            if key not in ("type", "min_iter", "max_iter", "eta", "s", "strict"):
                self.errors.append(f"early_terminate.{key}: no such key of hyperband")
        eta = self._read_integer(section, "eta", 3)
        if "min_iter" in section:
            first_rung = self._read_integer(section, "min_iter", 1)
        else:
            brackets = self._read_integer(section, "s", 1)
            if "max_iter" not in section:
                self.errors.append("early_terminate: hyperband needs min_iter, or max_iter and s")
            first_rung = max(1, self._read_integer(section, "max_iter", 1) // eta**brackets)
        return {
            "pruner": {
                "_target_": "optuna.pruners.SuccessiveHalvingPruner",
                "min_resource": first_rung,
                "reduction_factor": eta,
            }
        }

    def _read_integer(self, section: Mapping[object, object], key: str, default: int) -> int:
        """Returns an integer of `early_terminate`; its default, with an error, if it is none."""
        value = section.get(key, default)
        lowest = 1
        if key == "eta":
            lowest = 2
        if isinstance(value, int) and lowest <= value <= 10**9:
            return value
        self.errors.append(f"early_terminate.{key} must be an integer from {lowest}; got {value!r}")
        return default


def _read_variable(match: re.Match[str]) -> str:
    """Returns the environment variable of a macro; its name if it is not set, as W&B does."""
    return os.environ.get(match["name"], match["name"])


def _join(form: ArgumentForm, start: str, value: str) -> list[str]:
    """Returns the words of a name and its value, in a form."""
    if form.separates:
        return [start, value]
    return [f"{start}={value}"]


def _group(parameters: Sequence[Parameter]) -> dict[str, object]:
    """Returns parameters by their names, nested ones in mappings."""
    root: dict[str, object] = {}
    for parameter in parameters:
        tree = root
        *sections, name = parameter.path
        for section in sections:
            subtree = tree.setdefault(section, {})
            assert isinstance(subtree, dict)
            tree = subtree
        tree[name] = parameter
    return root


def _count(values: Values) -> int | None:
    """Returns how many values a hyperparameter has; None if there is no end of them."""
    if values.kind == "choice":
        return len(values.items)
    step = values.step
    if step is None and values.kind == "int":
        step = 1
    if step is None:
        return None
    low, high = map(float, values.items)
    return int((high - low) / step + 1e-9) + 1
