"""The primary config of a study that Python defines: what `studyloom.search` gets, as YAML.

The *subject* of a call is what its trials run: the class of a network, a function that returns
one, a custom training loop or an Optuna objective. A *setting* is a further argument of the call:
a section of a config, a key by its dotted name, or an option of a group.

A config names classes and functions, so those need names: at the top level of a module, of a script
or of a notebook. Tensors and arrays become files of the run directory, from where workers map them
and later commands read them.
"""

import functools
import hashlib
import inspect
import re
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Protocol, TypeGuard, cast, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from studyloom.config.config_sources import GROUPS, NETWORK_OPTIONS
from studyloom.config.invocation import read_sections
from studyloom.config.overrides import STUDY_GROUPS, merge_setting, suggest_key
from studyloom.config.schema import SCHEMA, check_name
from studyloom.config.trust import SECTIONS, read_yaml
from studyloom.config.values import as_yaml
from studyloom.data import Datasets, Loaded
from studyloom.data.split import make_folds
from studyloom.errors import ConfigError, raise_if_any
from studyloom.files import write_whole, write_with
from studyloom.objectives.user_functions import UserFunction
from studyloom.text import is_scalar, nearest
from studyloom.user_code.importing import (
    end_import_at_study,
    find_member,
    read_recorded_script,
    unwrap_callable,
)
from studyloom.user_code.pickled import (
    MAIN,
    REGISTERED_PREFIX,
    forget_objects,
    register_callable,
    register_object,
)
from studyloom.user_code.source_code import LAMBDA, check_readable

HELD_OUT_ONE_IN = 5  # one example of so many is for validation, and for the test if no set is given
DIGEST_LENGTH = 12  # characters
READ_ARRAYS = "studyloom.data.read_arrays"
EXPECTED_DATA = (
    "data must be a pair (train, test), or one of them to be divided; each a Dataset of PyTorch, "
    "or a pair of inputs and targets as tensors or arrays"
)
RANGES = ("int", "float", "choice", "list")  # the keys of a range, one of which it has


@dataclass(frozen=True)
class ExpectedType:
    """The type that a setting must have, and its description for an error."""

    type: Any
    description: str


SECTION = ExpectedType(Mapping, "a mapping of its keys")
EXPECTED_TYPES = {
    "study": SECTION,
    "objective": SECTION,
    "train": SECTION,
    "checkpoints": SECTION,
    "winner": SECTION,
    "cost": SECTION,
    "space": ExpectedType(
        Mapping, "a mapping of ranges, such as {'lr': Float(1e-4, 0.1, log=True)}"
    ),
    "storage": ExpectedType(str | Mapping, "an option such as sqlite, or the URL of a database"),
}
# Groups whose option a call may give as an object, and the class of the object.
SEARCH_PARTS: dict[str, type] = {"sampler": BaseSampler, "pruner": BasePruner}
# A function that takes one of NETWORK_PARAMETERS returns a network. One that takes none of them nor
# of LOOP_PARAMETERS does so if the call has a section `model`.
NETWORK_PARAMETERS = {"shape", "outputs", "classes"}
LOOP_PARAMETERS = {"run", "config", "cfg", "trial", "model"}


@runtime_checkable
class MapDataset(Protocol):
    """A Dataset of PyTorch whose examples are found by their index, of any class."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> object: ...


@dataclass
class PythonStudy:
    """A study definition that was written in Python.

    Attributes:
        sections: the sections of its primary config.
        arrays: the arrays that the config names, by the path of their file.
        notes: lines on what was decided for the user.
    """

    sections: dict[str, Any]
    arrays: dict[Path, NDArray[np.generic]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def run_dir(self) -> Path:
        """The run directory, absolute."""
        default = f"runs/{self.sections['study']['name']}"
        return Path(self.sections.get("run_dir", default)).absolute()

    def write(self) -> None:
        """Writes the arrays that the run directory lacks."""
        for path, array in self.arrays.items():
            if not path.exists():
                save_array = functools.partial(np.save, arr=array, allow_pickle=False)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_with(path, save_array)


def read_call(
    subject: Callable[..., object],
    space: Mapping[str, object],
    data: object,
    settings: Mapping[str, object],
    keywords: Sequence[str] = (),
) -> PythonStudy:
    """Reads the study definition from the arguments of `studyloom.search`.

    Args:
        subject: what the trials run: a network's class, a function that returns a network, a custom
            training loop, or an Optuna objective.
        space: the ranges of the hyperparameters.
        data: tensors, arrays or Datasets; or an option or section of the group `data`.
        settings: the further arguments: sections of a config, keys, and options of groups.
        keywords: the names of the keywords of `search`, which are suggested for misspelled ones.

    Raises:
        ConfigError: every error in them; the space and the values are checked with the config.
    """
    end_import_at_study()  # a script that is only imported runs no study
    forget_objects()  # those of an earlier search in this process
    reader = CallReader(subject, space, settings, keywords)
    all_settings = reader.with_space(space, settings)
    names_data = isinstance(data, str | Mapping)  # "mnist5k", an option of the group, or a section
    if names_data:
        all_settings = {"data": data, **all_settings}
    for key, value in all_settings.items():
        reader.add_setting(key, value)
    reader.add_subject()
    if isinstance(space, Mapping):
        reader.add_first_options(space)
    has_datasets = data is not None and not names_data
    lacks_data = reader.trains_network and "data" not in all_settings
    if has_datasets or lacks_data:
        reader.add_data(data)  # an error if it is None
    return reader.finish()


class CallReader:
    """Reads the arguments of a call of `studyloom.search`, and collects their errors.

    Attributes:
        study: the study definition so far.
        options: the option of each group that the config composes; None to compose none, since the
            call gives the whole section.
        errors: a line for each error so far.
        trains_network: whether the subject is a network, and not a loop or an Optuna objective.
    """

    def __init__(
        self,
        subject: Callable[..., object],
        space: Mapping[str, object],
        settings: Mapping[str, object],
        keywords: Sequence[str],
    ) -> None:
        self._subject = subject
        self._keywords = keywords
        self._parameters = _read_parameter_names(subject)
        name = _name_callable(subject)
        self.study = PythonStudy({"study": {"name": name.lower()}})
        self.options: dict[str, str | None] = {}
        self.trains_network = self._is_network(space, settings)
        self._target = _name_member(subject)
        self.errors = _explain_unknown_name(self._target, subject)
        if isinstance(subject, nn.Module):
            class_name = type(subject).__name__
            self.errors = [f"{class_name} is given as an object; give its class, {class_name}"]
        elif self.errors and not self.trains_network and is_passed_as_object(subject):
            self._target = register_callable(name, subject)
            self.errors = []

    def _is_network(self, space: Mapping[str, object], settings: Mapping[str, object]) -> bool:
        """Returns whether the subject is the class of a network, or a function that returns one.

        A function is known by its parameters: `shape` of a network, or `run` of a loop. If it has
        none of these, it returns a network if the call sets or searches the section `model`.
        """
        if isinstance(self._subject, type) and issubclass(self._subject, nn.Module):
            return True
        if not NETWORK_PARAMETERS.isdisjoint(self._parameters):
            return True
        if not LOOP_PARAMETERS.isdisjoint(self._parameters):
            return False
        keys = [*settings]
        if isinstance(space, Mapping):
            keys += space
        return any(str(key).partition(".")[0] == "model" for key in keys)

    def with_space(self, space: object, settings: Mapping[str, object]) -> Mapping[str, object]:
        """Returns the settings with the search space as the section `space`, unless it is empty.

        The space of a network has sections such as `model` and `optimizer`. The space of a loop has
        the parameters of the function, which are the section `params` in a config.
        """
        if not isinstance(space, Mapping):
            return {"space": space, **settings}  # an error, which `add_setting` explains
        section: Mapping[str, object] = space
        if self.trains_network:
            section = self._select_sections(space)
        elif space:
            section = {"params": space}
        if not section:
            return settings
        return {"space": section, **settings}

    def _select_sections(self, space: Mapping[str, object]) -> dict[str, object]:
        """Returns the sections of a network's search space, such as `optimizer`.

        Ranges that are in no section are left out, and an error is collected for them: a space
        such as {"lr": (1e-4, 1e-1)} must be {"optimizer": {"lr": (1e-4, 1e-1)}}.
        """
        sections = {}
        flat_names = []
        for name, value in space.items():
            if _is_flat(name, value):
                flat_names.append(str(name))
            else:
                sections[name] = value
        if flat_names:
            self.errors.append(_suggest_sections(flat_names, self._parameters))
        return sections

    def add_setting(self, key: str, value: object) -> None:
        """Adds a setting of the call to the definition, or an error if it is not one.

        A section that is a group of Hydra has files, one for each option: `optimizer="sgd"` chooses
        `conf/optimizer/sgd.yaml`. If the call gives a class or function for a group, as in
        `optimizer=torch.optim.SGD`, the group's option is None: the section then has only what the
        call gives, and not the settings of the default option, which are arguments of another
        class.

        Args:
            key: a section such as `train`, a key such as `train.epochs`, or a group.
            value: the section, the value of the key, or the name of the group's option.
        """
        section = key.partition(".")[0]
        if section not in SECTIONS or section == "hydra":
            suggestion = _suggest_keyword(key, self._keywords)
            self.errors.append(
                f"{key}: no such keyword, which must be a section or key of a config{suggestion}"
            )
            return
        expected = EXPECTED_TYPES.get(key)
        if expected is not None and not isinstance(value, expected.type):
            self.errors.append(f"{key} must be {expected.description}; got {value!r}")
            return
        is_group = key in STUDY_GROUPS
        if is_group and isinstance(value, str):
            self.options[key] = value
            return
        target = value
        if isinstance(value, Mapping):
            target = value.get("_target_")
        is_object = isinstance(value, tuple(SEARCH_PARTS.values()))
        if is_group and (callable(target) or is_object):
            self.options[key] = None
        config_value = _to_config_value(key, value, self.errors)
        try:
            self.study.sections = merge_setting(self.study.sections, key, config_value)
        except ConfigError as error:
            self.errors += error.errors

    def add_subject(self) -> None:
        """Adds the name of the subject: the target of the section `model`, or of `objective`.

        An Optuna objective whose direction the call does not set is minimized, as in Optuna.
        """
        sections = self.study.sections
        name_error = check_name(str(sections["study"]["name"]))
        if name_error:
            self.errors.append(name_error)
        if self.trains_network:
            sections.setdefault("model", {})["_target_"] = self._target
            return
        objective = sections.setdefault("objective", {})
        objective["_target_"] = self._target
        if "direction" in objective:
            return
        is_function = bool(self._parameters) and not isinstance(self._subject, type)
        is_optuna_objective = is_function and UserFunction(self._subject).takes_trial
        if is_optuna_objective:
            objective.setdefault("metric", "value")
            objective["direction"] = "minimize"
        else:
            self.errors.append(
                "maximize or minimize must name the value that it reports; one that returns a "
                "network takes shape, outputs or classes"
            )

    def add_first_options(self, space: Mapping[str, object]) -> None:
        """Chooses the option of the baseline for each group whose default is not in the space.

        It is the first option in the space. Otherwise the baseline of the space
        `{"optimizer": {"sgd": …}}` would have the default optimizer, AdamW, and be outside of it.
        """
        if not self.trains_network:
            return
        for group, content in space.items():
            if not isinstance(content, Mapping):
                continue
            options = []
            for name in content:
                if (GROUPS / group / f"{name}.yaml").is_file():
                    options.append(name)
            default_option = NETWORK_OPTIONS.get(group)
            if options and default_option not in options:
                self.options.setdefault(group, options[0])

    def add_data(self, data: object) -> None:
        """Adds the section `data` for Datasets, tensors or arrays of the call.

        Without a validation set, a fifth of the training set is held out as one, and noted.
        """
        try:
            datasets = _divide_data(self.study, data)
        except ConfigError as error:
            self.errors += error.errors
            return
        sections = self.study.sections
        settings = sections.get("data", {})  # the keys of the section that the call sets itself
        if _is_pair_of_tensors(datasets.train) and _is_pair_of_tensors(datasets.test):
            _inputs, targets = datasets.train.tensors
            if self.trains_network and targets.is_floating_point():
                self._choose_regression()
        section = self._make_data_section(datasets.train, datasets.test, settings)
        has_validation_set = settings.get("valid") is not None
        if not has_validation_set:
            default_count = max(1, len(datasets.train) // HELD_OUT_ONE_IN)
            validation_count = settings.get("validation", default_count)  # the call may set it
            section["validation"] = validation_count
            self.study.notes.append(
                f"data: {validation_count} training examples are the validation set "
                "(data.validation)"
            )
        sections["data"] = {**section, **settings}  # the call's own settings win

    def _choose_regression(self) -> None:
        """Chooses the loss and the metric of a regression, unless the call sets others."""
        self.options.setdefault("loss", "mse")
        objective = self.study.sections.setdefault("objective", {})
        objective.setdefault("metric", "rmse")

    def _make_data_section(
        self, train: MapDataset, test: MapDataset, settings: Mapping[str, object]
    ) -> dict[str, object]:
        """Makes the section of the data: arrays in files for pairs of tensors, else Datasets.

        Pairs of tensors are passed as Datasets too if the call sets a key of `data` that only the
        source `Datasets` has.

        Args:
            settings: the keys of the section that the call sets itself.
        """
        needs_datasets = _needs_datasets(settings)
        if _is_pair_of_tensors(train) and _is_pair_of_tensors(test) and not needs_datasets:
            folder = _add_arrays(self.study, train, test)
            load = {"_target_": READ_ARRAYS, "_partial_": True, "root": str(folder)}
            return {"_target_": "studyloom.data.Loaded", "load": load}
        # Workers get the Datasets themselves, pickled, under these names.
        return {
            "_target_": "studyloom.data.Datasets",
            "train": register_object("data.train", train),
            "test": register_object("data.test", test),
        }

    def finish(self) -> PythonStudy:
        """Returns the study definition, with the defaults list of its primary config.

        Raises:
            ConfigError: all errors that were collected.
        """
        raise_if_any(self.errors)
        sections = self.study.sections
        defaults: list[str | dict[str, object]] = ["studyloom"]
        for group, option in self.options.items():
            defaults.append({group: option})
        # The schema has an entry for the group `track` already, which only an override can change.
        # Hydra requires overrides to be last, behind `_self_`, the entry for this config itself.
        if isinstance(sections.get("track"), list):
            defaults += ["_self_", {"override /track": sections.pop("track")}]
        self.study.sections = {"defaults": defaults, **sections}
        return self.study


def _name_member(member: object) -> str:
    """Returns the dotted name by which a class or function can be imported, if it can be.

    Another object has the name of its class, which is not a name of the object itself.
    """
    name = type(member).__qualname__
    if hasattr(member, "__qualname__"):
        name = member.__qualname__
    module = type(member).__module__
    if hasattr(member, "__module__"):
        module = member.__module__
    return f"{module}.{name}"


def _name_callable(subject: object) -> str:
    """Returns the name of a function or class, or of what a callable object is made of.

    It is the name of the function for a `functools.partial`, that of the class for an object with
    `__call__`, and "objective" for a lambda.
    """
    name: str = unwrap_callable(subject).__name__
    if name == LAMBDA:
        return "objective"
    return name


def is_passed_as_object(subject: object) -> bool:
    """Returns whether workers can get a subject that has no name, with a digest of its code.

    Such a subject is a lambda, a closure, a `functools.partial`, or an object with `__call__`. The
    source of what it calls must be readable, or an edit of it would go unnoticed.
    """
    if isinstance(subject, type) or not callable(subject):
        return False
    try:
        check_readable(unwrap_callable(subject))
    except ConfigError:
        return False
    return True


def _read_parameter_names(subject: Callable[..., object]) -> set[str]:
    """Returns the names of a subject's parameters; none if it has no signature."""
    try:
        return {*inspect.signature(subject).parameters}
    except (TypeError, ValueError):  # it cannot be called, or is written in C
        return set()


# Keywords of Optuna's `create_study` and `optimize`, and how a call of `search` says the same.
OPTUNA_KEYWORDS = {
    "n_trials": "trials=…",
    "n_jobs": "workers=…",
    "timeout": "study={'timeout': …}, in seconds",
    "direction": "minimize='loss' or maximize='accuracy'",
    "directions": "maximize=['accuracy', …] and minimize=[…]",
    "study_name": "name=…",
    "load_if_exists": "no such keyword: the same call resumes a study",
    "catch": "no such keyword: a trial that raises an error fails, and the study continues",
    "show_progress_bar": "quiet=…",
}


def _suggest_keyword(name: str, keywords: Sequence[str]) -> str:
    """Suggests a keyword of `search`, or the section that has a key of this name.

    For `epoch` it returns "; did you mean train={'epochs': …}?".
    """
    if name in OPTUNA_KEYWORDS:
        return f"; here it is {OPTUNA_KEYWORDS[name]}"
    similar_keywords = get_close_matches(name, keywords, n=1, cutoff=0.8)
    if similar_keywords:
        return f"; did you mean {similar_keywords[0]}?"
    key_suggestion = suggest_key(name, SCHEMA)  # such as "; did you mean train.epochs?"
    if key_suggestion:
        # As an argument of `search`, train.epochs is written train={'epochs': …}.
        return re.sub(r" (\w+)\.(\w+)\?$", r" \1={'\2': …}?", key_suggestion)
    return nearest(name, SECTIONS)


def _is_flat(name: object, value: object) -> bool:
    """Returns whether an item of a network's space is a range outside of any section.

    `{"width": Int(4, 256)}` has one, and `{"model": {"width": Int(4, 256)}}` has none.
    """
    is_range = isinstance(value, Mapping) and not value.keys().isdisjoint(RANGES)
    is_section_or_key = not isinstance(name, str) or "." in name or name in SECTIONS
    return is_range and not is_section_or_key


def _suggest_sections(flat_names: Sequence[str], parameters: Collection[str]) -> str:
    """Returns the error for hyperparameters of a network that are outside of any section.

    For `lr` it ends in "did you mean space={'optimizer': {'lr': …}}?". A name that neither the
    network nor a section knows is put into the section `model`.

    Args:
        flat_names: the names of the hyperparameters, which may be misspelled.
        parameters: the names of the network's parameters.
    """
    sections_by_name = _find_sections_of_names(parameters)
    items_by_section: dict[str, list[str]] = {}
    for flat_name in flat_names:
        name = flat_name
        similar_names = get_close_matches(name, sections_by_name, n=1, cutoff=0.8)
        if similar_names:
            name = similar_names[0]
        section = sections_by_name.get(name, "model")
        items_by_section.setdefault(section, []).append(f"'{name}': …")
    section_texts = []
    for section, items in items_by_section.items():
        section_texts.append(f"'{section}': {{{', '.join(items)}}}")
    return (
        f"space: {', '.join(flat_names)}: a hyperparameter of a network stands in its section; "
        f"did you mean space={{{', '.join(section_texts)}}}?"
    )


def _find_sections_of_names(parameters: Collection[str]) -> dict[str, str]:
    """Returns the section that each hyperparameter of a network belongs to, by name.

    A name that several sections have belongs to the first of these: `model`, `train`, and then the
    default options of the groups, such as `optimizer`.

    Args:
        parameters: the names of the network's parameters.
    """
    sections_by_name = dict.fromkeys(parameters, "model")
    for name in SCHEMA.train:
        sections_by_name.setdefault(str(name), "train")
    for group, option in NETWORK_OPTIONS.items():
        option_file = GROUPS / group / f"{option}.yaml"
        for name in read_yaml(option_file, trusted=True):
            sections_by_name.setdefault(str(name), group)
    return sections_by_name


def _to_config_value(key: str, value: Any, errors: list[str]) -> Any:
    """Converts a setting of a call to a value that a config can hold.

    A class or function becomes a section with its name as `_target_`, a Dataset a section by which
    this process and its workers find the object, and an array a list.

    Args:
        key: the key of the setting in the config.
        errors: a list to which a line is added for each value that no config can hold.
    """
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if is_scalar(value) or isinstance(value, Path):
        return value
    if isinstance(value, Mapping):
        section = {}
        for name, inner in value.items():
            section[name] = _to_config_value(f"{key}.{name}", inner, errors)
        target_section = section.get("_target_")
        if isinstance(target_section, dict):  # the target was a class or function
            section |= target_section
        return section
    if key in SEARCH_PARTS and isinstance(value, SEARCH_PARTS[key]):
        return register_object(key, value)
    if key.startswith("data."):
        dataset = _as_dataset(value)
        if dataset is not None:
            return register_object(key, dataset)
    if isinstance(value, Sequence):
        items = []
        for position, item in enumerate(value):
            items.append(_to_config_value(f"{key}[{position}]", item, errors))
        return items
    is_class_or_function = isinstance(value, type) or inspect.isroutine(value)
    if key == "objective.test" and callable(value):  # a partial or an object with `__call__` too
        return _name_in_section(key, value, errors)
    # Nothing builds the sections in `params` and `space`: their values are passed on as they are.
    if is_class_or_function and not key.startswith(("params", "space")):
        return _name_in_section(key, value, errors)
    alternative = "numbers, strings, lists, mappings, or its class and arguments as a _target_"
    if key.startswith("space"):
        alternative = "a range by Int, Float, Choice or List"
    errors.append(
        f"{key}: a config cannot hold an object of type {type(value).__name__}; give {alternative}"
    )
    return None


def _name_in_section(key: str, member: Any, errors: list[str]) -> dict[str, object]:
    """Returns the section of a config that names a class or function.

    A class is called when the section is built, and the object is passed on. But with `_partial_`
    the class or function itself is passed on. That holds for:
    - the class of an optimizer, which is made only once there are weights;
    - a class among the arguments of a network, which makes objects of it;
    - every function.

    Args:
        key: the key of the section.
        member: the class or function.
        errors: a list to which a line is added if workers cannot import the member.
    """
    target = _name_member(member)
    problems = _explain_unknown_name(target, member)
    if problems and key == "objective.test" and is_passed_as_object(member):
        target = register_callable("test", member)
        problems = []
    for problem in problems:
        errors.append(f"{key}: {problem}")
    section: dict[str, object] = {"_target_": target}
    if inspect.isroutine(member) or key.startswith(("optimizer", "model.")):
        section["_partial_"] = True
    return section


def _explain_unknown_name(name: str, member: object) -> list[str]:
    """Explains why workers could not import a class or function by its dotted name.

    Returns:
        An empty list if they can.
    """
    try:
        if find_member(name) is member:
            check_readable(member)
            return []
    except ConfigError as error:
        return error.errors
    except (AttributeError, ImportError, ValueError):
        pass  # no member of this name can be imported
    # Here, none was found, or another one of the same name.
    return [
        f"{name}: worker processes cannot import it; give a class or a def at the top "
        f"level of the notebook, script or module; got {type(member).__name__}"
    ]


# The data


@dataclass(frozen=True)
class DividedData:
    """The training set and the test set of a call."""

    train: MapDataset
    test: MapDataset


def _needs_datasets(settings: Mapping[str, object]) -> bool:
    """Returns whether a call sets a key of `data` that only the source `Datasets` has.

    Tensors are usually written to files of arrays, which the source `Loaded` reads. If it lacks one
    of the keys, they are passed as Datasets instead.

    Args:
        settings: the keys of the section `data` that the call sets itself.
    """
    keys_of_datasets = inspect.signature(Datasets).parameters.keys()
    keys_of_loaded = inspect.signature(Loaded).parameters.keys()
    keys_only_of_datasets = keys_of_datasets - keys_of_loaded
    return not keys_only_of_datasets.isdisjoint(settings)


def _is_pair_of_tensors(dataset: object) -> TypeGuard[TensorDataset]:
    """Returns whether a Dataset consists of a tensor of inputs and a tensor of targets."""
    # A subclass may change the items.
    return type(dataset) is TensorDataset and len(dataset.tensors) == 2


def _divide_data(study: PythonStudy, data: object) -> DividedData:
    """Returns the training and the test set of a call; a single set is divided into both.

    Args:
        data: a pair (train, test), or one of them; each a Dataset, or a pair (inputs, targets).

    Raises:
        ConfigError: the data are anything else, or too few.
    """
    single_dataset = _as_dataset(data)
    if single_dataset is not None:
        return _divide_dataset(study, single_dataset)
    train = None
    test = None
    if isinstance(data, tuple | list) and len(data) == 2:
        train = _as_dataset(data[0])
        test = _as_dataset(data[1])
    if train is None or test is None:
        raise ConfigError(f"{EXPECTED_DATA}; got {type(data).__name__}")
    _check_size("data.train", train, least=2)
    _check_size("data.test", test, least=1)
    return DividedData(train, test)


def _divide_dataset(study: PythonStudy, dataset: MapDataset) -> DividedData:
    """Divides a Dataset into a training and a test set at random, and notes that in the study.

    For tensors, each class has the same share in both sets. The targets of another Dataset are not
    read, so that its sets are drawn without regard to classes.
    """
    _check_size("data", dataset, least=3)
    count = len(dataset)
    seed = study.sections["study"].get("seed", 0)
    test_count = max(1, count // HELD_OUT_ONE_IN)
    study.notes.append(
        f"data: {test_count} of {count} examples, drawn by study.seed={seed}, are the test set"
    )
    if type(dataset) is TensorDataset:
        targets = dataset.tensors[-1]
        fold = make_folds(targets, count=1, validation=test_count, seed=seed)[0]
        return DividedData(
            train=TensorDataset(*dataset[fold.training]),
            test=TensorDataset(*dataset[fold.validation]),
        )
    no_classes = torch.zeros(count)  # `make_folds` draws without regard to floats
    fold = make_folds(no_classes, count=1, validation=test_count, seed=seed)[0]
    divisible = cast("Dataset[object]", dataset)  # `Subset` needs no more than a MapDataset has
    return DividedData(
        train=Subset(divisible, fold.training.tolist()),
        test=Subset(divisible, fold.validation.tolist()),
    )


def _check_size(key: str, dataset: MapDataset, least: int) -> None:
    """Raises ConfigError if a Dataset has fewer examples than the least number."""
    if len(dataset) < least:
        raise ConfigError(f"{key} has too few examples, {len(dataset)}; give at least {least}")


def _as_dataset(value: object) -> MapDataset | None:
    """Returns a Dataset unchanged, and a pair of tensors or arrays as a Dataset.

    Returns:
        None for any other value.

    Raises:
        ConfigError: the tensors or arrays cannot be data, or the value is a stream or a DataLoader.
    """
    _refuse_streams(value)
    if type(value) is TensorDataset:
        for tensor in value.tensors:
            _to_tensor(tensor)  # raises the error
    if isinstance(value, tuple | list):
        if len(value) != 2 or not all(hasattr(item, "dtype") for item in value):
            return None
        inputs, targets = map(_to_tensor, value)
        if len(inputs) != len(targets):
            raise ConfigError(f"data: {len(inputs)} inputs have {len(targets)} targets")
        return TensorDataset(inputs, targets)
    is_array = hasattr(value, "dtype")
    if isinstance(value, MapDataset) and not is_array:
        return value
    return None


def _refuse_streams(value: object) -> None:
    """Raises ConfigError for an IterableDataset or a DataLoader, and says what to give instead."""
    dataset = value
    if isinstance(value, DataLoader):
        dataset = value.dataset
    if isinstance(dataset, IterableDataset):
        raise ConfigError(
            "data must be map-style Datasets, with __len__ and __getitem__, so that examples can "
            f"be held out; got an IterableDataset, {type(dataset).__name__}; give its examples as "
            "a map-style Dataset, or read it in a custom training loop without data=…, which keeps "
            "its position by run.keep(stream=studyloom.Stream(…))"
        )
    if isinstance(value, DataLoader):
        raise ConfigError(
            "data must be Datasets; got a DataLoader; give its Dataset, loader.dataset, and "
            "the size of its batches as train={'batch_size': …}"
        )


def _to_tensor(value: object) -> torch.Tensor:
    """Converts a tensor or array to a tensor on the CPU; floating-point numbers become float32.

    Raises:
        ConfigError: it holds no numbers, or has no row for each example.
    """
    try:
        tensor = torch.as_tensor(value).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"data: inputs and targets must be numbers: {error}") from None
    is_dense = tensor.layout == torch.strided and not tensor.is_quantized
    has_rows = tensor.dim() > 0
    if not is_dense or not has_rows:
        raise ConfigError(
            "data: inputs and targets must be dense, a row for each; got "
            f"{tensor.type()} of shape {tuple(tensor.shape)}"
        )
    if tensor.is_floating_point():
        return tensor.float()
    return tensor


def _add_arrays(study: PythonStudy, train: TensorDataset, test: TensorDataset) -> Path:
    """Adds the arrays of both sets to a study, which writes them to files later.

    Returns:
        The folder of the files. It is named after a digest of the arrays, so that other data get
        another folder.
    """
    arrays: dict[str, NDArray[np.generic]] = {}  # by the name of their file
    for part, dataset in {"train": train, "test": test}.items():
        inputs, targets = dataset.tensors
        arrays[f"{part}_inputs.npy"] = inputs.contiguous().numpy()
        arrays[f"{part}_targets.npy"] = targets.contiguous().numpy()
    digest = hashlib.sha256()
    for array in arrays.values():
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(array.data)
    folder = study.run_dir / "data" / digest.hexdigest()[:DIGEST_LENGTH]
    study.arrays = {folder / name: array for name, array in arrays.items()}
    return folder


# A config file of the call


def write_definition(run_dir: Path, folder: Path) -> Path:
    """Writes the definition of a study that `search` has run as a primary config into a folder.

    The arrays of the data are copied there too, so that the config does not depend on the run
    directory.

    Raises:
        ConfigError: the config names what only the program knows that has called `search`, such as
            a class that the script defines.
    """
    sections = read_sections(run_dir)
    _refuse_names_of_program(as_yaml(sections), run_dir)
    name = sections["study"]["name"]
    load = sections.get("data", {}).get("load", {})
    if isinstance(load, dict) and load.get("_target_") == READ_ARRAYS:
        data_folder = folder.absolute() / name
        shutil.copytree(load["root"], data_folder, dirs_exist_ok=True)
        load["root"] = str(data_folder)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.yaml"
    write_whole(file, as_yaml(sections))
    return file


def _refuse_names_of_program(text: str, run_dir: Path) -> None:
    """Raises ConfigError if a config names something that no other program can import.

    These are the classes and functions that a script or notebook defines itself, such as
    `__main__.Net`, and the Datasets that were given to `search` as objects.

    Args:
        text: the config, as YAML.
    """
    errors = []
    names_in_main = re.findall(rf"\b{MAIN}(\w+)", text)  # MAIN is "__main__."
    names = ", ".join(dict.fromkeys(names_in_main))  # each once
    if names:
        program = "a notebook"
        script = read_recorded_script(run_dir)
        if script is not None:
            program = str(script.path)
        errors.append(
            f"a config cannot name what {program} defines: move {names} into a module next to it, "
            f"such as parts.py, import it by `from parts import {names}`, and search again"
        )
    if REGISTERED_PREFIX in text:
        errors.append(
            "a config cannot hold the Datasets, functions and samplers that were given as objects: "
            "give tensors or arrays, or name classes of a module as data.train._target_ and "
            "data.test._target_, and functions and classes of a module for the others"
        )
    raise_if_any(errors)
