"""The user's code as a part of a study definition: a digest for each module that a config names.

A *target* is the dotted name of a function or class that a config names, such as `_target_`. Names
that begin with `__main__.` are those of the notebook or script that runs the study. A *member* is a
function or class of a module.
"""

import inspect
import os
import sys
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import suppress
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from studyloom.errors import ConfigError, raise_if_any
from studyloom.user_code.given_objects import GivenObjectReader
from studyloom.user_code.importing import find_member
from studyloom.user_code.pickled import (
    MAIN,
    REGISTERED_PREFIX,
    received_digests,
    registered_object,
    texts_of_registered,
)
from studyloom.user_code.source_code import (
    digest_module,
    digest_source,
    find_members,
    find_module_file,
    read_source,
    select_code,
)
from studyloom.user_code.stable_texts import (
    DATA,
    StableText,
    digest_data,
    find_names_read,
    make_stable_text,
)

CODE = "code."  # the beginning of the key of a digest; the module follows

# The modules as this process first saw them, by name: the spec that imported a module, and the
# digest of its file.
_first_specs: dict[str, ModuleSpec] = {}
_first_digests: dict[str, str] = {}


def compute_code_digests(sections: object) -> dict[str, str]:
    """Computes the digests of the user's code that a config names.

    Installed packages, Python's modules and studyloom are left out, so that an upgrade does not
    change a study definition. Modules that the named ones import are left out too.

    Args:
        sections: the sections of a config, as plain values.

    Returns:
        Digests by keys of three kinds:

        * `code.studies.mine`: the file of a module that the config names.
        * `code.studies.mine.images`: an array, tensor or Dataset at the top level of such a module,
          which the named code uses.
        * `code.__main__.Net`: a definition of the notebook or script that runs the study, or a
          global that such a definition uses.

    Raises:
        ConfigError: files have changed since this process imported them, as in a notebook that runs
            a second study: it would run other code than the digests say.
    """
    targets = dict.fromkeys(find_targets(sections))  # an ordered set
    members: list[Any] = []  # functions and classes
    for target in targets:
        members += _import_members(target)
    digests: dict[str, str] = {}
    for member in members:
        module = digest_module(member)
        if module is not None:
            digests[module.name] = module.digest
    digests |= _digest_module_data(members, modules=digests)
    digests |= _digest_main(targets)
    _check_not_edited(digests)
    return {f"{CODE}{name}": digests[name] for name in sorted(digests)}


def _digest_main(targets: Iterable[str]) -> dict[str, str]:
    """Returns the digests of what a notebook or script defines, by names such as `__main__.Net`.

    A worker has received the digests from that program, since it cannot read the source of a
    notebook.

    Args:
        targets: the dotted names in a config. Definitions that none of them uses are left out.
    """
    if received_digests:
        return received_digests
    digests = {}
    for name, text in find_main_globals(targets).items():
        if text:
            digests[MAIN + name] = _digest_stable_text(text)
    for name, stable_text in _make_texts_of_registered(targets).items():
        digests[MAIN + name] = _digest_stable_text(stable_text.text)
    return digests


def _make_texts_of_registered(targets: Iterable[str]) -> dict[str, StableText]:
    """Makes texts for each callable object that the program has registered.

    They are by names such as `search(objective)`, and `search(objective).images` for a variable
    that the object captures. They are made once for a registered object, since its calls may change
    what it holds.

    Raises:
        ConfigError: this process does not have an object that a config names.
    """
    texts = {}
    for target in targets:
        if target.startswith(REGISTERED_PREFIX):
            name = target.removeprefix(REGISTERED_PREFIX)
            try:
                value = find_member(target)
            except AttributeError as error:  # another program has given it
                raise ConfigError(str(error)) from error
            if value is registered_object:  # which stands for an object that is no target
                continue
            if name not in texts_of_registered:
                texts_of_registered[name] = GivenObjectReader().make_texts(value)
            for variable, text in texts_of_registered[name].items():
                key = f"search({name})"
                if variable:
                    key = f"{key}.{variable}"
                texts[key] = text
    return texts


def _check_not_edited(digests: Mapping[str, str]) -> None:
    """Raises ConfigError if the file of a module has changed since this process imported it.

    Args:
        digests: the digests of the present files, by the name of the module.
    """
    errors = []
    for name in sorted(digests):
        if _is_edited(name, digests[name]):
            path = os.path.relpath(str(sys.modules[name].__file__))
            errors.append(
                f"{path} has changed since this process imported it; restart it (in a notebook: "
                "the kernel), or use importlib.reload"
            )
    raise_if_any(errors)


def _is_edited(name: str, digest: str) -> bool:
    """Returns whether a module's source has changed since this process first looked at it.

    The first look at a module records its digest, and so does the first one after it was reloaded
    or imported again: then this process runs the new source.

    Args:
        name: the name of a module; for another name, such as `__main__.Net`, False is returned.
        digest: the digest of the module's present file.
    """
    module = sys.modules.get(name)
    if module is None or not hasattr(module, "__spec__") or module.__spec__ is None:
        return False
    spec = module.__spec__  # a new object after each import, and after a reload
    is_first_look = _first_specs.get(name) is not spec
    if is_first_look:
        _first_specs[name] = spec
        _first_digests[name] = digest
    return _first_digests[name] != digest


def select_code_digests(definition: Mapping[str, Any]) -> dict[str, Any]:
    """Selects the digests of code in a definition."""
    return {key: value for key, value in definition.items() if key.startswith(CODE)}


def contains_data_digest(text: str) -> bool:
    """Returns whether a text contains a digest of data, and not only digests of sources."""
    return DATA in text


def describe_source(key: str) -> str:
    """Describes the source whose digest has changed.

    Args:
        key: the key of the digest in a study definition.

    Returns:
        For a module, as for `code.studies.mine`, its file: "studies/mine.py". For a definition of
        a notebook or script, as for `code.__main__.Net`: "the code of Net". For a variable that a
        given function captures: "the variable images of search(objective)". For others, their name.
    """
    name = key.removeprefix(CODE)
    file = find_module_file(name)
    if file is not None:
        path = Path(file)
        if path.is_relative_to(Path.cwd()):
            path = path.relative_to(Path.cwd())
        return str(path)
    if name.startswith(MAIN):
        variable = find_captured_variable(key)
        member = name.removeprefix(MAIN)
        if variable is not None:
            return f"the variable {variable} of {member.removesuffix(f'.{variable}')}"
        return f"the code of {member}"
    return name


def find_captured_variable(key: str) -> str | None:
    """Returns the variable of a digest's key such as `code.__main__.search(objective).images`.

    None for a key of something else than a variable that a given function captures.
    """
    _, parenthesis, variable = key.partition(").")
    if not parenthesis:
        return None
    return variable


def find_targets(value: Any) -> Iterator[str]:
    """Yields the dotted names of functions and classes in a section of a config, at any depth.

    The names are the values of `_target_`, and of `path` in sections of Hydra's `get_method` and
    `get_class`.
    """
    if isinstance(value, list | tuple):
        for item in value:
            yield from find_targets(item)
    elif isinstance(value, Mapping):
        target = value.get("_target_")
        if isinstance(target, str):
            yield target
            if target.startswith("hydra.utils.get_") and isinstance(value.get("path"), str):
                yield value["path"]
        for item in list(value.values()):
            yield from find_targets(item)


def _import_members(target: str) -> Iterable[Any]:
    """Imports a target of a config, and returns the functions and classes whose code it runs."""
    try:
        return find_members(find_member(target))
    except Exception:  # it cannot be imported, which the validation of the config reports
        return ()


def find_main_globals(targets: Iterable[str]) -> dict[str, str]:
    """Returns the globals of `__main__` among targets, and all globals that their code uses.

    cloudpickle sends these to workers together with the targets.

    Returns:
        A text of each global, by its name, that is the same in each process: its source, or a
        digest of its data; "" if it has none.
    """
    main_globals = vars(sys.modules["__main__"])
    names_to_visit = []
    for target in targets:
        if target.startswith(MAIN):
            global_name = target.removeprefix(MAIN).partition(".")[0]  # Net of __main__.Net.small
            names_to_visit.append(global_name)
    for stable_text in _make_texts_of_registered(targets).values():
        names_to_visit += stable_text.names_read
    texts: dict[str, str] = {}
    while names_to_visit:
        name = names_to_visit.pop(0)
        if name in main_globals and name not in texts and not name.startswith("__"):
            stable_text = make_stable_text(main_globals[name])
            texts[name] = stable_text.text
            names_to_visit += stable_text.names_read
    return texts


def _digest_stable_text(text: str) -> str:
    """Returns the digest of a text of `find_main_globals`; that of data is a digest already."""
    if text.startswith(DATA):
        return text
    # The text is assigned, since a string on its own would be left out as a docstring.
    return digest_source(f"_ = {text}".encode())


def _digest_module_data(members: Iterable[Any], modules: Container[str]) -> dict[str, str]:
    """Returns the digests of the arrays, tensors and Datasets that the user's code uses.

    A module may draw such data when it is imported, so that they can differ while the digest of its
    file stays equal. Only data at the top level of a module are found. Functions and classes of the
    same module that the code uses are searched too.

    Args:
        members: functions and classes.
        modules: the names of the user's modules; members of others are left out.

    Returns:
        Digests by names such as `studies.mine.images`.
    """
    digests: dict[str, str] = {}
    members_to_search = []
    for member in members:
        if hasattr(member, "__module__") and member.__module__ in modules:
            members_to_search.append(member)
    searched_ids: set[int] = set()
    while members_to_search:
        member = members_to_search.pop()
        if id(member) in searched_ids:
            continue
        searched_ids.add(id(member))
        module_globals = vars(sys.modules[member.__module__])
        for name in _find_names_read_by(member):
            value = module_globals.get(name)
            data_digest = digest_data(value)
            if data_digest is not None:
                digests[f"{member.__module__}.{name}"] = data_digest
            is_member = inspect.isroutine(value) or inspect.isclass(value)
            if is_member and value.__module__ == member.__module__:
                members_to_search.append(value)
    return digests


def _find_names_read_by(member: object) -> Iterator[str]:
    """Yields the global names that a function reads, or the methods of a class."""
    methods = vars(member).values()
    for code in select_code([member, *methods]):
        yield from find_names_read(code)


def read_main_sources(sections: object) -> dict[str, str]:
    """Returns the sources of the targets that a notebook or script defines, by the target."""
    sources = {}
    for target in find_targets(sections):
        if target.startswith(MAIN):
            with suppress(Exception):  # the validation of the config reports a missing target
                sources[target] = read_source(find_member(target))
    return sources
