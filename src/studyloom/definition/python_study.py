"""The primary config of a study that Python defines: what `studyloom.search` gets, as YAML.

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
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Subset, TensorDataset

from studyloom.config.config_sources import GROUPS, OF_NETWORKS
from studyloom.config.invocation import read_sections
from studyloom.config.overrides import STUDY_GROUPS, merge_setting, suggest_key
from studyloom.config.schema import SCHEMA, check_name
from studyloom.config.trust import SECTIONS, read_yaml
from studyloom.config.values import as_yaml
from studyloom.data import Datasets, Loaded
from studyloom.data.split import make_folds
from studyloom.errors import ConfigError, refuse
from studyloom.files import write_whole, write_with
from studyloom.objectives.user_functions import UserFunction
from studyloom.text import is_scalar, nearest
from studyloom.user_code.digests import check_readable
from studyloom.user_code.importing import end_import_at_study, find_member, read_recorded_script
from studyloom.user_code.pickled import MAIN, OWN, forget_objects, register_object

SHARE = 5  # one example of so many is for validation, and for the test if no test set is given
READ_ARRAYS = "studyloom.data.read_arrays"
WANTED = (
    "data must be a pair (train, test), or one of them to be divided; each a Dataset of PyTorch, "
    "or a pair of inputs and targets as tensors or arrays"
)
RANGES = ("int", "float", "choice", "list")  # the keys of a range, one of which it has
SECTION = (Mapping, "a mapping of its keys")
# What some arguments must be, and that in words.
KINDS: dict[str, tuple[Any, str]] = {
    **dict.fromkeys(("study", "objective", "train", "checkpoints", "winner", "cost"), SECTION),
    "space": (Mapping, "a mapping of ranges, such as {'lr': Float(1e-4, 0.1, log=True)}"),
    "storage": (str | Mapping, "an option such as sqlite, or the URL of a database"),
}
# A function is trained as a network if it takes one of these; or if the call has a section `model`,
# unless it takes one of the others.
OF_NETWORK = {"shape", "outputs", "classes"}
OF_LOOP = {"run", "config", "cfg", "trial", "model"}


@dataclass
class PythonStudy:
    """A study definition that was written in Python.

    Attributes:
        sections: of a primary config.
        arrays: those that it names, by the path of their file.
        notes: what was decided for the user, in words.
    """

    sections: dict[str, Any]
    arrays: dict[Path, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def run_dir(self) -> Path:
        named = self.sections.get("run_dir", f"runs/{self.sections['study']['name']}")
        return Path(named).absolute()

    def write(self) -> None:
        """Writes the arrays that the run directory lacks."""
        for path, array in self.arrays.items():
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                write_with(path, functools.partial(np.save, arr=array, allow_pickle=False))


def ask(
    subject: Callable[..., Any],
    space: Mapping[str, Any],
    data: Any,
    settings: Mapping[str, Any],
    keywords: Sequence[str] = (),
) -> PythonStudy:
    """Reads the study definition from the arguments of `studyloom.search`.

    Args:
        settings: sections of a config, keys by their dotted names, and options of groups.
        keywords: those of `search`, one of which may be suggested for a misspelled one.

    Raises:
        ConfigError: every error in them; the space and the values are checked with the config.
    """
    end_import_at_study()
    forget_objects()
    name = getattr(subject, "__qualname__", type(subject).__name__)
    target = f"{getattr(subject, '__module__', '')}.{name}"
    sections: dict[str, Any] = {"study": {"name": name.rpartition(".")[2].lower()}}
    errors, options = _why_not_found(target, subject), dict[str, str | None]()
    try:
        parameters = {*inspect.signature(subject).parameters}
    except (TypeError, ValueError):  # it cannot be called, or is written in C
        parameters = set()
    base = subject if isinstance(subject, type) else object  # a function is no network itself
    is_tree = isinstance(space, Mapping)
    has_model = "model" in {
        str(key).split(".")[0] for key in (*(space if is_tree else ()), *settings)
    }
    trains = issubclass(base, nn.Module) or bool(OF_NETWORK & parameters)
    trains = trains or (has_model and not OF_LOOP & parameters)
    if is_tree and trains and (flat := [str(key) for key in space if _is_flat(key, space[key])]):
        errors.append(_nested(flat, parameters))
        space = {key: space[key] for key in space if key not in flat}
    if space or not is_tree:
        settings = {"space": {"params": space} if is_tree and not trains else space, **settings}
    if isinstance(data, str | Mapping):
        data, settings = None, {"data": data, **settings}
    for key, value in settings.items():
        top, (kind, words) = key.partition(".")[0], KINDS.get(key, (object, ""))
        if top not in SECTIONS or top == "hydra":
            words = "no such keyword, which must be a section or key of a config"
            errors.append(f"{key}: {words}{_near_keyword(key, keywords)}")
        elif not isinstance(value, kind):
            errors.append(f"{key} must be {words}; got {value!r}")
        elif key in STUDY_GROUPS and isinstance(value, str):
            options[key] = value
        else:
            chosen = value.get("_target_") if isinstance(value, Mapping) else value
            if key in STUDY_GROUPS and callable(chosen):
                options[key] = None  # no option's settings are for it
            try:
                sections = merge_setting(sections, key, _plain(key, value, errors))
            except ConfigError as error:
                errors += error.errors
    study = PythonStudy(sections)
    errors += filter(None, [check_name(str(sections["study"]["name"]))])
    section = sections.setdefault("model" if trains else "objective", {})
    section["_target_"] = target
    if not trains and "direction" not in section:
        if parameters and base is object and UserFunction(subject).takes_trial:  # as in Optuna
            section |= {"metric": section.get("metric", "value"), "direction": "minimize"}
        else:
            words = "; one that returns a network takes shape, outputs or classes"
            errors.append(f"maximize or minimize must name the value that it reports{words}")
    # An option to begin with, where the space chooses among some.
    for group, branches in space.items() if is_tree and trains else ():
        within = branches if isinstance(branches, Mapping) else ()
        named = [option for option in within if (GROUPS / group / f"{option}.yaml").is_file()]
        if named and OF_NETWORKS.get(group) not in named:
            options.setdefault(group, named[0])
    try:
        if data is not None or (trains and "data" not in settings):
            _add_data(study, options, data, trains=trains)
    except ConfigError as error:
        errors += error.errors
    refuse(errors)
    listed: list[Any] = [{group: option} for group, option in options.items()]
    if isinstance(sections.get("track"), list):
        listed += ["_self_", {"override /track": sections.pop("track")}]
    study.sections = {"defaults": ["studyloom", *listed], **sections}
    return study


def _near_keyword(name: str, keywords: Sequence[str]) -> str:
    """Suggests a keyword of `search`, or the section that has a key of this name."""
    if close := get_close_matches(name, keywords, n=1, cutoff=0.8):
        return f"; did you mean {close[0]}?"
    in_section = re.sub(r" (\w+)\.(\w+)\?$", r" \1={'\2': …}?", suggest_key(name, SCHEMA))
    return in_section or nearest(name, SECTIONS)


def _is_flat(key: Any, value: Any) -> bool:
    """Whether a space has a range at its top, where a network needs a section."""
    is_range = isinstance(value, Mapping) and not value.keys().isdisjoint(RANGES)
    return is_range and isinstance(key, str) and "." not in key and key not in SECTIONS


def _nested(flat: Sequence[str], parameters: Collection[str]) -> str:
    """Says how the hyperparameters of a network are written: each in its section.

    Args:
        parameters: of the network; a name that no section has is taken for one of these.
    """
    names = {"model": parameters, "train": [str(key) for key in SCHEMA.train]}
    for group, option in OF_NETWORKS.items():
        section = read_yaml(GROUPS / group / f"{option}.yaml", trusted=True)
        names[group] = [str(key) for key in section]
    owners = {name: section for section, known in reversed(names.items()) for name in known}
    meant_by: dict[str, list[str]] = {}
    for name in flat:
        near = get_close_matches(name, owners, n=1, cutoff=0.8) or [name]
        meant_by.setdefault(owners.get(near[0], "model"), []).append(f"'{near[0]}': …")
    tree = ", ".join(f"'{section}': {{{', '.join(each)}}}" for section, each in meant_by.items())
    return (
        f"space: {', '.join(flat)}: a hyperparameter of a network stands in its section; "
        f"did you mean space={{{tree}}}?"
    )


def _plain(key: str, value: Any, errors: list[str]) -> Any:
    """Returns a setting as a config holds it: classes and functions by name, Datasets as given.

    Args:
        errors: gets a line for each value within it that no config can hold.
    """
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if is_scalar(value) or isinstance(value, Path):
        return value
    if isinstance(value, Mapping):
        inner = {name: _plain(f"{key}.{name}", each, errors) for name, each in value.items()}
        target = inner.get("_target_")
        return inner | target if isinstance(target, dict) else inner
    if key.startswith("data.") and (part := _as_dataset(value)) is not None:
        return register_object(key, part)
    if isinstance(value, Sequence):
        return [_plain(f"{key}[{place}]", each, errors) for place, each in enumerate(value)]
    is_function = inspect.isroutine(value)
    if not (is_function or isinstance(value, type)) or key.startswith(("params", "space")):
        way = "numbers, strings, lists, mappings, or its class and arguments as a _target_"
        way = "a range by Int, Float, Choice or List" if key.startswith("space") else way
        kind = type(value).__name__
        errors.append(f"{key}: a config cannot hold an object of type {kind}; give {way}")
        return None
    named = f"{value.__module__}.{value.__qualname__}"
    errors += [f"{key}: {line}" for line in _why_not_found(named, value)]
    # An optimizer waits for the parameters, and a network makes its own layers.
    waits = is_function or key.startswith(("optimizer", "model."))
    return {"_target_": named} | ({"_partial_": True} if waits else {})


def _why_not_found(target: str, subject: Any) -> list[str]:
    """Says why no worker could find a class or function by its dotted name."""
    try:
        if find_member(target) is subject:
            check_readable(subject)
            return []
    except ConfigError as error:
        return error.errors
    except (AttributeError, ImportError, ValueError):
        pass
    return [
        f"{target}: worker processes cannot import it; give a class or a def at the top "
        f"level of the notebook, script or module; got {type(subject).__name__}"
    ]


# The data


def _add_data(
    study: PythonStudy, options: dict[str, str | None], data: Any, *, trains: bool
) -> None:
    """Adds the section of the data; raises ConfigError if they are nothing that we know."""
    train, test = _divided(study, data)
    own = study.sections.get("data", {})
    in_pairs = all(type(p) is TensorDataset and len(p.tensors) == 2 for p in (train, test))
    if in_pairs and trains and train.tensors[1].is_floating_point():
        options.setdefault("loss", "mse")
        study.sections.setdefault("objective", {}).setdefault("metric", "rmse")
    keys, of_loaded = (inspect.signature(each).parameters.keys() for each in (Datasets, Loaded))
    made: dict[str, Any]
    if in_pairs and not own.keys() & (keys - of_loaded):
        root = str(_add_arrays(study, train.tensors, test.tensors))
        load = {"_target_": READ_ARRAYS, "_partial_": True, "root": root}
        made = {"_target_": "studyloom.data.Loaded", "load": load}
    else:
        made = {"_target_": "studyloom.data.Datasets"}
        made |= {
            "train": register_object("data.train", train),
            "test": register_object("data.test", test),
        }
    if own.get("valid") is None:
        count = made["validation"] = own.get("validation", max(1, len(train) // SHARE))
        words = "training examples are the validation set (data.validation)"
        study.notes.append(f"data: {count} {words}")
    study.sections["data"] = {**made, **own}


def _divided(study: PythonStudy, data: Any) -> tuple[Any, Any]:
    """Returns the training and the test set as Datasets."""
    if (whole := _as_dataset(data)) is None:
        parts = data if isinstance(data, tuple | list) and len(data) == 2 else [data, None]
        train, test = map(_as_dataset, parts)
        if train is None or test is None:
            raise ConfigError(f"{WANTED}; got {type(data).__name__}")
        _check_size("data.train", train, 2)
        _check_size("data.test", test, 1)
        return train, test
    _check_size("data", whole, 3)
    count, seed = len(whole), study.sections["study"].get("seed", 0)
    tested = max(1, count // SHARE)
    words = f"drawn by study.seed={seed}, are the test set"
    study.notes.append(f"data: {tested} of {count} examples, {words}")
    targets = whole.tensors[-1] if type(whole) is TensorDataset else torch.zeros(count)
    first, second = make_folds(targets, 1, tested, seed)[0]
    if type(whole) is TensorDataset:
        return TensorDataset(*whole[first]), TensorDataset(*whole[second])
    return Subset(whole, first.tolist()), Subset(whole, second.tolist())


def _check_size(key: str, part: Any, least: int) -> None:
    if len(part) < least:
        raise ConfigError(f"{key} has too few examples, {len(part)}; give at least {least}")


def _as_dataset(part: Any) -> Any:
    """Returns a Dataset unchanged, a pair of tensors or arrays as one, and else None."""
    if type(part) is TensorDataset:  # a subclass may change what it holds
        list(map(_tensor, part.tensors))  # which refuses what no file can hold
    if isinstance(part, tuple | list):
        if len(part) != 2 or not all(hasattr(each, "dtype") for each in part):
            return None
        inputs, targets = map(_tensor, part)
        if len(inputs) != len(targets):
            raise ConfigError(f"data: {len(inputs)} inputs have {len(targets)} targets")
        return TensorDataset(inputs, targets)
    is_map_style = hasattr(part, "__getitem__") and hasattr(part, "__len__")
    return part if is_map_style and not hasattr(part, "dtype") else None


def _tensor(value: Any) -> torch.Tensor:
    try:
        tensor = torch.as_tensor(value).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"data: inputs and targets must be numbers: {error}") from None
    if not tensor.dim() or tensor.layout != torch.strided or tensor.is_quantized:
        got = f"{tensor.type()} of shape {tuple(tensor.shape)}"
        raise ConfigError(f"data: inputs and targets must be dense, a row for each; got {got}")
    return tensor.float() if tensor.is_floating_point() else tensor


def _add_arrays(study: PythonStudy, *parts: Sequence[torch.Tensor]) -> Path:
    """Adds the arrays of both parts; returns their folder, which is named after what they hold."""
    arrays = {
        f"{part}_{name}.npy": tensor.contiguous().numpy()
        for part, pair in zip(("train", "test"), parts, strict=True)
        for name, tensor in zip(("inputs", "targets"), pair, strict=True)
    }
    digest = hashlib.sha256()
    for array in arrays.values():
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(array.data)
    root = study.run_dir / "data" / digest.hexdigest()[:12]
    study.arrays = {root / name: array for name, array in arrays.items()}
    return root


def write_definition(run_dir: Path, folder: Path) -> Path:
    """Writes the definition of a run of `search` as a primary config; see `Study.to_yaml`."""
    sections = read_sections(run_dir)
    script = read_recorded_script(run_dir)
    text, errors = as_yaml(sections), list[str]()
    if names := ", ".join(dict.fromkeys(re.findall(rf"\b{MAIN}(\w+)", text))):
        errors.append(
            f"a config cannot name what {script.path if script else 'a notebook'} defines: move "
            f"{names} into a module next to it, such as parts.py, import it by `from parts import "
            f"{names}`, and search again"
        )
    if OWN[1] in text:
        errors.append(
            "a config cannot hold the Datasets that were given as objects: give tensors or arrays, "
            "or name classes of a module as data.train._target_ and data.test._target_"
        )
    refuse(errors)
    name = sections["study"]["name"]
    load = sections.get("data", {}).get("load", {})
    if isinstance(load, dict) and load.get("_target_") == READ_ARRAYS:
        place = folder.absolute() / name
        shutil.copytree(load["root"], place, dirs_exist_ok=True)
        load["root"] = str(place)
    folder.mkdir(parents=True, exist_ok=True)
    written = folder / f"{name}.yaml"
    write_whole(written, as_yaml(sections))
    return written
