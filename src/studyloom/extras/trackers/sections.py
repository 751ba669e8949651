"""From the section `track` of a config to trackers."""

import importlib.util
import re
from typing import Any

from studyloom.config.build import build
from studyloom.errors import ConfigError
from studyloom.extras.trackers.journal import Journal
from studyloom.extras.trackers.tracker import Recalling

METHODS = ("begin", "report", "end", "study_end")


def build_trackers(section: Any) -> dict[str, Recalling]:
    """Builds the trackers of a config; connects to none.

    Args:
        section: a mapping of sections with a `_target_`, by names of the user's own.

    Raises:
        ConfigError: every mistake in it.
    """
    if not section:
        return {}
    if not hasattr(section, "items"):
        raise ConfigError(
            [
                f"track must be a mapping of trackers, not {section!r}; on a command line, or "
                "among the defaults, they are chosen by a list: track=[tensorboard,mlflow]"
            ]
        )
    trackers: dict[str, Recalling] = {}
    mistakes: list[str] = []
    places: dict[str, str] = {}
    for name in map(str, section):
        try:
            tracker = _build(name, section[name])
        except ConfigError as error:
            mistakes += error.mistakes
            continue
        if (other := places.setdefault(tracker.place, name)) != name:
            mistakes.append(
                f"track.{name} and track.{other} write to the same place, {tracker.place}, which "
                "would have everything twice; leave one of them out, or give it another place"
            )
        trackers[name] = tracker
    if mistakes:
        raise ConfigError(mistakes)
    return trackers


def _build(name: str, section: Any) -> Recalling:
    if not re.fullmatch(r"[\w-]{1,64}", name):  # it names a file
        raise ConfigError(
            [f"track: the name of a tracker must be of letters, digits, _ and -, not {name!r}"]
        )
    if section is None or not hasattr(section, "items"):
        raise ConfigError([f"track.{name} must be a section with a _target_, not {section!r}"])
    tracker = build(section)
    if missing := [each for each in METHODS if not callable(getattr(tracker, each, None))]:
        raise ConfigError(
            [
                f"track.{name}: {type(tracker).__name__} has no {', '.join(missing)}; a tracker "
                "has begin(trial), report(trial, epoch, values), end(trial, state, values) and "
                "study_end(answer)"
            ]
        )
    return tracker if isinstance(tracker, Recalling) else Journal(tracker, name)


def require(package: str, extra: str) -> None:
    """Checks that a package is installed, without importing it.

    Raises:
        ConfigError: it is not.
    """
    if importlib.util.find_spec(package) is None:
        raise ConfigError(
            [f"track={extra}: needs the package {package}: pip install 'studyloom[{extra}]'"]
        )
