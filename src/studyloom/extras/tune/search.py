"""A search over the arguments of a script, and the config of the study that it becomes.

A command line gives a `Search`; so may another description of a search, such as a sweep file.
"""

import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml  # type: ignore[import-untyped]

from studyloom.config.config_sources import check_run_dir
from studyloom.config.invocation import write_sections
from studyloom.config.values import as_yaml, escape_interpolations
from studyloom.errors import ConfigError
from studyloom.extras.tune.value_ranges import Values
from studyloom.files import write_whole
from studyloom.metrics import Direction

CONFIG = "tune.yaml"  # in the run directory
BOUNDS = ("trials", "target")  # keys of the section `study` that bound a search
# The placeholders of a command, as in `integrations.command`, whose import takes seconds.
RESERVED = ("seed", "trial", "checkpoint_dir", "gpus")
# The kinds of ranges in a space, where a mapping with such a key is a range, and no section.
KINDS = ("int", "float", "choice", "list")
BRACES = re.compile(r"\{([A-Za-z_][\w.]*)\}")  # which a command would take for a placeholder
# Characters that need no quotes in a command. No shell reads it, so that {lr} needs none.
PLAIN_WORD = re.compile(r"[\w@%+=:,./{}\[\]-]+")


def choose_placeholder(path: str, names: Collection[str]) -> str:
    """Chooses the name of a hyperparameter, and so of its placeholder: lr for lr, a_b for a-b.

    A dotted name such as optimizer.lr stays, unless optimizer is a hyperparameter too. A part
    that would make a range of the space of its section, such as choice, gets an underscore.

    Args:
        path: the hyperparameter as the program calls it, such as "weight-decay".
        names: the names that other hyperparameters have already.
    """
    parts = []
    for part in re.sub(r"[^\w.]", "_", path).split("."):
        if part in KINDS:
            part += "_"
        parts.append(part)
    name = ".".join(parts)
    if not re.match("[A-Za-z_]", name):
        name = f"_{name}"
    for other in names:
        if other.startswith(f"{name}.") or name.startswith(f"{other}."):
            name = name.replace(".", "_") + "_"
    while name in names or name in RESERVED:
        name += "_"
    return name


@dataclass(frozen=True)
class Hyperparameter:
    """A hyperparameter of a search.

    Attributes:
        name: the name of its placeholder, such as lr or optimizer.lr.
        values: its range or list.
        flag: the words of an option without a value, if it is one: see `Script.flags`.
    """

    name: str
    values: Values
    flag: tuple[str, ...] = ()


@dataclass(frozen=True)
class Search:
    """A search over the arguments of a script.

    Attributes:
        name: the name of the study.
        command: the words of the command of a trial, with placeholders such as {lr}.
        hyperparameters: those that the command names.
        metric: the name of the value in the output of the script.
        direction: maximize or minimize.
        value: a regular expression for the value; "" to look for the name of the metric.
        step: a regular expression for the step; None to look for epoch, step and iter.
        test_value: the name of the value on the test set, or a regular expression with a group.
        test_command: the words of a program that prints it; empty if the script itself does.
        trials: the number of trials; None for the default of a study.
        target: the value that ends the search; None if no value does.
        settings: further sections of the config, such as {"pruner": {…}}.
    """

    name: str
    command: Sequence[str]
    hyperparameters: Sequence[Hyperparameter]
    metric: str
    direction: Direction
    value: str = ""
    step: str | None = None
    test_value: str = ""
    test_command: Sequence[str] = ()
    trials: int | None = None
    target: float | None = None
    settings: Mapping[str, object] = field(default_factory=dict)

    def to_config(self) -> dict[str, object]:
        """Returns the primary config of the study."""
        objective: dict[str, object] = {
            "_target_": "studyloom.extras.integrations.Script",
            "run": escape_interpolations(join_command(self.command)),
        }
        if self.value:
            objective["value"] = escape_interpolations(self.value)
        if self.step is not None:
            objective["step"] = escape_interpolations(self.step)
        if self.test_value or self.test_command:
            objective["test"] = "studyloom.extras.integrations.script.read_test_value"
        if self.test_value:
            objective["test_value"] = escape_interpolations(self.test_value)
        if self.test_command:
            objective["test_run"] = escape_interpolations(join_command(self.test_command))
        flags = {}
        params: dict[str, object] = {}
        for hyperparameter in self.hyperparameters:
            _set_nested(params, hyperparameter.name, hyperparameter.values.to_space())
            if hyperparameter.flag:
                flags[hyperparameter.name] = [*hyperparameter.flag]
        if flags:
            objective["flags"] = flags
        objective["metric"] = self.metric
        objective["direction"] = self.direction
        study: dict[str, object] = {"name": self.name}
        if self.trials is not None:
            study["trials"] = self.trials
        if self.target is not None:
            study["target"] = self.target
        return {
            "defaults": ["studyloom"],
            "study": study,
            "objective": objective,
            "space": {"params": params},
            **self.settings,
        }


def escape_braces(word: str) -> str:
    """Returns a word of a command in which text such as {lr} is no placeholder."""
    return BRACES.sub(r"{{\1}}", word)


def join_command(command: Sequence[str]) -> str:
    """Joins the words of a command, with quotes where they are needed."""
    return " ".join(word if PLAIN_WORD.fullmatch(word) else shlex.quote(word) for word in command)


def _set_nested(tree: dict[str, object], path: str, value: object) -> None:
    """Sets a value in nested mappings: at the path optimizer.lr, in the mapping optimizer."""
    *sections, name = path.split(".")
    for section in sections:
        subtree = tree.setdefault(section, {})
        assert isinstance(subtree, dict)
        tree = subtree
    tree[name] = value


def has_other_study(search: Search, run_dir: Path) -> bool:
    """Returns True if a study of another config than that of a search has run in a directory.

    A study continues with another number of trials, and with another target.
    """
    file = run_dir / CONFIG
    if not (run_dir / ".hydra" / "config.yaml").exists():
        return False
    if not file.exists():
        return True
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError):  # somebody has edited it
        return True
    return _write_without_bounds(config) != _write_without_bounds(search.to_config())


def _write_without_bounds(config: object) -> str:
    """Returns a config as text, without the keys that may change while a study continues."""
    if not isinstance(config, dict) or not isinstance(config.get("study"), dict):
        return ""
    study = {}
    for key, value in config["study"].items():
        if key not in BOUNDS:
            study[key] = value
    return as_yaml({**config, "study": study})


def write_config(search: Search, run_dir: Path) -> Path:
    """Writes the config of a search into its run directory, and returns its file.

    If a study of another config has run there, the file gets another place: the study decides
    whether it takes the config.

    Raises:
        ConfigError: the directory cannot be written to.
    """
    check_run_dir(str(run_dir))
    config = search.to_config()
    text = as_yaml(config)
    file = run_dir / CONFIG
    if has_other_study(search, run_dir):
        invocation = write_sections(config, run_dir)
        return invocation.config_dir / f"{invocation.config_name}.yaml"
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        write_whole(file, text)
    except OSError as error:
        raise ConfigError(
            f"{file}: {error.strerror}; give another folder by --set run_dir=…"
        ) from None
    return file
