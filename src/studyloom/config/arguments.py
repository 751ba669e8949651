"""The arguments of a command: rewritten for Hydra, and explained if Hydra refuses them."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig

from studyloom.config.config_sources import GROUPS
from studyloom.config.overrides import Override, describe_compose_error, find_override_errors
from studyloom.config.schema import find_unknown_keys
from studyloom.config.trust import TrustRules
from studyloom.environment import EVENTS, JSON, NOTIFY
from studyloom.errors import ConfigError
from studyloom.text import mask_passwords


def rewrite_arguments(argv: Sequence[str]) -> list[str]:
    """Rewrites a command line for Hydra, and moves output options to environment variables.

    Raises:
        ConfigError: an argument has a password, or an invalid address.
    """
    arguments = move_outputs(argv)
    refuse_passwords(arguments)
    for position, argument in enumerate(arguments):
        if argument == "--dry-run":
            arguments[position] = "study.dry_run=true"
    return arguments


def refuse_passwords(argv: Sequence[str]) -> None:
    """Refuses a URL with a password, which Hydra would write to files and `ps` shows to everybody.

    Raises:
        ConfigError: an argument has one; the message does not show it.
    """
    for argument in argv:
        text = re.sub(r"\$\{[\w.:]*\}", "", argument)  # an interpolation shows no password
        # An empty password, as in `postgresql://user:@host`, is masked by *** too. So the stars are
        # removed: the text is then as before, unless there was a password.
        text_without_password = mask_passwords(text).replace("***", "")
        has_password = text_without_password != text
        if "://" in text and has_password:
            raise ConfigError(
                f"{Override.parse(argument).key}: must not have a password on a command line, "
                "which is stored in files; set storage=postgres and the environment variable "
                "STUDYLOOM_STORAGE to the URL, or put the password into ~/.pgpass"
            )


def move_outputs(argv: Sequence[str]) -> list[str]:
    """Moves `--events`, `--json` and `notify=` to the environment; returns the other arguments.

    Raises:
        ConfigError: an option lacks its value.
    """
    if "--json" in argv:  # first: errors of the other arguments are printed as JSON too
        os.environ[JSON.name] = "1"
    other_arguments: list[str] = []
    arguments = iter(argv)
    for argument in arguments:
        option = Override.parse(argument)  # also splits `--events=FILE`
        if option.key == "--events":
            file = option.value
            if file is None:
                file = next(arguments, None)  # `--events FILE`
            if file is None or file.startswith("-"):
                raise ConfigError("--events needs a FILE, which gets a line of JSON an event")
            os.environ[EVENTS.name] = file
        elif option.key == "notify" and not option.deletes:
            os.environ[NOTIFY.name] = "\n".join(parse_notify(option.value or ""))
        elif argument != "--json":
            other_arguments.append(argument)
    return other_arguments


def parse_notify(text: str) -> list[str]:
    """Returns the URLs and commands of `notify=…`: a single one, or a list in Hydra's syntax.

    Raises:
        ConfigError: it is a list that cannot be read. The message does not show it, since a URL may
            hold a secret.
    """
    value: object
    try:
        value = OverridesParser.create().parse_override(f"notify={text}").value()
    except HydraException:  # a single address may have characters that Hydra refuses
        if text.startswith("["):
            raise ConfigError(
                "notify=[…]: cannot be read; quote each address: notify='[\"ntfy://topic\"]'"
            ) from None
        value = text.strip("'\"")
    if not isinstance(value, list):
        value = [value]
    addresses = []
    for item in value:
        if item is None or item == "":
            continue
        if not isinstance(item, str) or "\n" in item:
            raise ConfigError("notify: must be a URL of apprise, a command, or a list of these")
        addresses.append(item)
    return addresses


def find_trust_rules(argv: Sequence[str], folder: Path) -> TrustRules:
    """Returns the trust rules of a command line and of the folder of the study's own configs.

    Only the `trust=[…]` of the command line counts: an untrusted config must not trust itself.
    """
    packages: list[str] = []
    for argument in argv:
        override = Override.parse(argument)
        if override.key == "trust":  # the last one counts
            # The names in a list such as [mine,"yours"], without quotes, commas and brackets.
            packages = re.findall(r"""[^\s,'"\[\]]+""", override.value or "")
    return TrustRules(own_folders=(folder, GROUPS), trusted=tuple(packages))


def find_config_errors(config: DictConfig) -> list[str]:
    """Returns the errors of a composed config that are known before anything is built from it."""
    errors = find_unknown_keys(config)
    if HydraConfig.get().job.chdir:
        fix = "leave it out; run_dir=… says where the files of a study are"
        errors.append(f"hydra.job.chdir=true: {fix}")
    return errors


def explain_failure(
    error: Exception, config_path: str, config_name: str, argv: Sequence[str]
) -> list[str]:
    """Explains, in lines, why Hydra could not compose the config or create run_dir.

    Args:
        error: the exception that was raised.
        config_path: the folder of the study's configs.
        config_name: the name of its primary config.
        argv: the overrides, each of which is tried to find all errors in them. They and the config
            are not looked at for an OSError.
    """
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        return [f"run_dir: {error.strerror}: {error.filename}; name another with run_dir=…"]
    if isinstance(error, ConfigError):  # of an untrusted file
        return list(error.errors)
    override_errors = find_override_errors(config_path, config_name, argv)
    if override_errors:
        return override_errors
    return [describe_compose_error(error)]
