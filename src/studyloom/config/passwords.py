"""Moves passwords, and what a command tells to whom, from its command line to the environment.

Hydra writes the overrides of a command to files, and workers are started with them, where `ps`
shows them to everybody. The environment of a process is shown to its user alone.

`--events FILE`, `--json` and `notify=…` are no part of a study, so that Hydra does not even see
them: a configuration from elsewhere can ask for none of it. A notify URL often holds a secret.
"""

import ctypes
import os
import re
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from studyloom.errors import ConfigError
from studyloom.processes import stat_fields
from studyloom.text import as_yaml, has_password

# The environment variables that take the URLs with a password.
VARIABLES = {
    "storage.url": "STUDYLOOM_STORAGE",
    "study.from": "STUDYLOOM_FROM",
    "track.mlflow.uri": "MLFLOW_TRACKING_URI",
}
# The variables that take what a command tells, and to whom.
EVENTS, NOTIFY, JSON = "STUDYLOOM_EVENTS", "STUDYLOOM_NOTIFY", "STUDYLOOM_JSON"
# A password that the environment holds already: user:${oc.env:PASSWORD}@host.
KEPT = re.compile(r":\$\{oc\.env:\w+\}(?=@)|password=\$\{oc\.env:\w+\}", re.IGNORECASE)


def move_passwords(argv: Sequence[str]) -> list[str]:
    """Puts the passwords of a command's overrides into the environment of this process.

    Args:
        argv: the arguments of the command, without its name.

    Returns:
        Arguments that compose the same config and have no password.

    Raises:
        ConfigError: every password that cannot be moved, with the way out.
    """
    result, mistakes = [], []
    for argument in argv:
        key = argument.lstrip("+~-").partition("=")[0]
        moved = argument
        if re.split(r"[.@]", key)[0] in ("storage", "study", "track") and _shows_password(argument):
            try:
                moved = _move(argument)
            except ConfigError as error:
                mistakes += error.mistakes
            hide_from_ps(argument)
        result.append(moved)
    if mistakes:
        raise ConfigError(mistakes)
    return result


def take_outputs(argv: Sequence[str]) -> list[str]:
    """Moves what a command tells to the environment of this process.

    Args:
        argv: the arguments of the command, without its name.

    Returns:
        The other arguments.

    Raises:
        ConfigError: a value is missing or is none.
    """
    rest: list[str] = []
    left = list(argv)
    while left:
        argument = left.pop(0)
        name, given, value = argument.partition("=")
        if name == "--events":
            if not given and (not left or left[0].startswith("-")):
                raise ConfigError(["--events needs a FILE, which gets a line of JSON an event"])
            os.environ[EVENTS] = value if given else left.pop(0)
        elif argument == "--json":
            os.environ[JSON] = "1"
        elif name.lstrip("+") == "notify":
            hide_from_ps(argument)
            os.environ[NOTIFY] = "\n".join(targets_of(argument.lstrip("+")))
        else:
            rest.append(argument)
    return rest


def targets_of(argument: str) -> list[str]:
    """Returns the URLs and commands of `notify=…`: a single one as it is, or a list of Hydra's.

    Raises:
        ConfigError: it is a list that cannot be read. The message does not show it.
    """
    raw = argument.partition("=")[2]
    try:
        value = OverridesParser.create().parse_override(argument).value()
    except HydraException:  # an address may have any character
        value = raw.strip("'\"")
        if raw.startswith("["):
            raise ConfigError(
                ["notify=[…]: cannot be read; quote each address: notify='[\"ntfy://topic\"]'"]
            ) from None
    items: list[Any] = value if isinstance(value, list) else [value]
    if any(not isinstance(item, str) or "\n" in item for item in items if item is not None):
        raise ConfigError(["notify: must be a URL of apprise, a command, or a list of these"])
    return [str(item) for item in items if item]


def _shows_password(text: str) -> bool:
    """Whether a text has a password that is not in the environment already."""
    shown = KEPT.sub("", text)
    # An interpolation may stand before what is shown: ${oc.env:SCHEME}//user:password@host.
    after = [f"url:{shown[match.start() :]}" for match in re.finditer("//", shown)]
    return any(map(has_password, [*after, f"url://host/{shown}"]))


def _move(argument: str) -> str:
    """Returns an override that has the same value without its password."""
    key, _, raw = argument.partition("=")
    name = key.lstrip("+~-")
    if key.startswith("~"):
        return key  # the value only says what is expected there
    try:
        value: Any = OverridesParser.create().parse_override(argument).value()
    except HydraException:
        value = raw.strip("'\"")  # as it is: a password may have any character
        if not re.match(r"[\w+]+://", value):
            raise ConfigError([_refusal(name)]) from None
    if isinstance(value, str):
        return f"{key}={_to_environment(name, value)}"
    if isinstance(value, dict):
        return f"{key}={_written(_without(name, value))}"
    raise ConfigError([_refusal(name)])


def _without(key: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without(f"{key}.{name}", below) for name, below in value.items()}
    if _shows_password(str(value)):
        if not isinstance(value, str):
            raise ConfigError([_refusal(key)])
        return _to_environment(key, value)
    return value


def _to_environment(key: str, text: str) -> str:
    """Puts a text into the variable of its key, and returns the interpolation that reads it."""
    if key not in VARIABLES:
        raise ConfigError([_refusal(key)])
    if "${" in text:
        try:
            text = str(OmegaConf.create({"value": text}).value)
        except OmegaConfBaseException:
            raise ConfigError([_refusal(key)]) from None
    os.environ[VARIABLES[key]] = text
    return f"${{oc.env:{VARIABLES[key]}}}"


def _refusal(key: str) -> str:
    ways = " or ".join(f"{key} into {variable}" for key, variable in VARIABLES.items())
    return (
        f"{key}: must not have a password in this form, which would be written to files; put the "
        f"URL of {ways}, in the environment"
    )


def _written(value: Any) -> str:
    """Writes a value as Hydra reads it."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_written(below)}" for key, below in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_written, value)) + "]"
    if isinstance(value, str):
        quoted = re.sub(r"(\\*)'", lambda match: f"{match[1] * 2}\\'", value)
        ending = re.search(r"\\*$", quoted)
        return f"'{quoted}{ending[0] if ending else ''}'"
    return as_yaml(value)


def hide_from_ps(argument: str) -> None:
    """Overwrites an argument of this process where `ps` reads it; does nothing outside Linux."""
    try:
        fields = stat_fields("self")
        begin, end = int(fields[45]), int(fields[46])  # arg_start and arg_end of proc(5)
        typed = ctypes.string_at(begin, end - begin)
    except (OSError, ValueError, IndexError):
        return
    hidden = argument.encode(errors="surrogateescape")
    place = typed.find(b"\0" + hidden + b"\0")
    if place >= 0:
        key = argument.partition("=")[0].encode(errors="surrogateescape") + b"=***"
        ctypes.memset(begin + place + 1, ord(" "), len(hidden))
        ctypes.memmove(begin + place + 1, key[: len(hidden)], min(len(key), len(hidden)))
