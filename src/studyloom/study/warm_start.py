"""Warm starts: the points that a study tries first, from its user or from earlier studies.

`study.enqueue` lists known good points. `study.from` takes the best trials of an earlier study, or
a portfolio of several: those that it names or, as `auto`, those that are found. Each point becomes
a waiting trial with fixed parameters before any worker starts. The question of the study is the
same with them and without.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studyloom.config.values import value_at
from studyloom.errors import ConfigError
from studyloom.question.question import Question
from studyloom.storage.urls import parse_url, without_password
from studyloom.study.earlier import AUTO, Earlier, WarmStart, take_points
from studyloom.study.placing import place_point
from studyloom.text import as_yaml


@dataclass(frozen=True)
class Remembered:
    """The earlier studies that `study.from=auto` has found.

    Attributes:
        studies: those that may have points of the space.
        notes: lines for the user about those that were left out.
    """

    studies: Sequence[Earlier] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class WarmStarts:
    """All points to begin with.

    Attributes:
        points: in the order in which they are tried.
        sources: what `study.from` stands for: the earlier studies, without passwords, and `auto`
            if that has found them.
        notes: lines for the user about the trials of the earlier studies.
    """

    points: Sequence[WarmStart] = ()
    sources: Sequence[str] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Begun:
    """What a study has taken from earlier ones until now.

    Attributes:
        sources: the earlier studies whose trials it has; they are not read again.
        planned: whether points were chosen that are perhaps not all queued, since the command was
            killed. They are written down in the study, and no others are chosen.
    """

    sources: Sequence[str] = ()
    planned: bool = False


def find_warm_starts(
    question: Question,
    begun: Begun,
    read: Callable[[str], Earlier],
    remember: Callable[[], Remembered] = Remembered,
) -> WarmStarts:
    """Finds the points that `study.enqueue` and `study.from` name.

    Args:
        question: what the study asks; its config names the points.
        begun: what the study has taken already.
        read: reads an earlier study that `study.from` names.
        remember: looks for earlier studies, for `study.from=auto`.

    Raises:
        ConfigError: every point that the space cannot give, and each earlier study that is missing.
    """
    study = question.config.study
    enqueued = value_at(question.config, "study.enqueue")
    wanted = value_at(question.config, "study.from")
    if not enqueued and not wanted:
        return WarmStarts()
    mistakes: list[str] = []
    notes: list[str] = []
    points = list(_enqueued_points(question, enqueued, mistakes))
    if study.top < 1:
        mistakes.append(f"study.top must be at least 1; got {study.top}")
    if getattr(question.sampler(0), "points", None) is not None:
        mistakes.append(
            "sampler=grid: tries each point of the space once, so study.enqueue and study.from "
            "add nothing; remove them, or choose another sampler"
        )
    room = question.trials() - (question.baseline is not None) - len(points)
    if room < 0:
        beside = " beside the baseline" if question.baseline is not None else ""
        mistakes.append(
            f"study.enqueue: {len(points)} points{beside} are more than "
            f"study.trials={study.trials}; raise study.trials, or remove points"
        )
    sources = _sources(wanted, mistakes, notes)
    new = [source for label, source in sources.items() if label not in begun.sources]
    studies = list[Earlier]()
    if begun.planned and not mistakes:
        return WarmStarts(points, [*sources], notes)
    if new == [AUTO] and not mistakes:
        found = remember()
        studies, notes = [*found.studies], [*notes, *found.notes]
    elif new != [AUTO]:
        studies = _read_all(new, read, mistakes, notes)
    if mistakes:
        raise ConfigError(mistakes)
    taken = take_points(question, studies, min(study.top, room), notes, looked=new == [AUTO])
    from_where = [each.label for each in studies if any(_is_of(start, each) for start in taken)]
    return WarmStarts([*points, *taken], [*dict.fromkeys([*sources, *from_where])], notes)


def _sources(wanted: Any, mistakes: list[str], notes: list[str]) -> dict[str, str]:
    """Returns the sources that `study.from` names, by their label; each once."""
    if wanted in (None, AUTO):
        return {} if wanted is None else {AUTO: AUTO}
    sources: dict[str, str] = {}
    for index, source in enumerate(wanted if isinstance(wanted, list) else [wanted]):
        key = f"study.from[{index}]" if isinstance(wanted, list) else "study.from"
        if source == AUTO:
            mistakes.append(
                f"{key}: auto looks for earlier studies itself, and cannot stand beside others; "
                "set study.from=auto, or name all"
            )
        elif not isinstance(source, str) or not source:
            mistakes.append(
                f"{key} must be a run directory or the URL of a database; got {source!r}"
            )
        else:
            try:
                label = source_label(source)
            except ValueError as error:
                mistakes.append(f"{key}: {error}")
                continue
            if label in sources:
                notes.append(f"study.from names {label} twice; it counts once")
            sources[label] = source
    return sources


def _read_all(
    sources: Sequence[str],
    read: Callable[[str], Earlier],
    mistakes: list[str],
    notes: list[str],
) -> list[Earlier]:
    """Reads the earlier studies that are named, each once; collects why one cannot be read."""
    studies: list[Earlier] = []
    for source in sources:
        try:
            earlier = read(source)
        except ValueError as error:
            lines = getattr(error, "mistakes", [str(error)])
            mistakes += [f"study.from: {line}" for line in lines]
            continue
        same = [each.label for each in studies if earlier.uuid and each.uuid == earlier.uuid]
        if same:
            notes.append(f"{earlier.label} is the study of {same[0]}; it counts once")
            continue
        if earlier.open:
            notes.append(f"{earlier.label}: is not finished: {earlier.open} trials are open")
        studies.append(earlier)
    return studies


def _is_of(start: WarmStart, earlier: Earlier) -> bool:
    return start.source.rpartition(", trial ")[0] == earlier.label


def _enqueued_points(question: Question, enqueued: Any, mistakes: list[str]) -> Iterator[WarmStart]:
    if not isinstance(enqueued, list) or not all(isinstance(item, Mapping) for item in enqueued):
        mistakes.append(
            "study.enqueue must be a list of points, such as [{model: cnn, …}, …]; "
            f"got {as_yaml(enqueued)}"
        )
        return
    for index, parameters in enumerate(enqueued):
        source = f"study.enqueue[{index}]"
        placed = place_point(question, parameters)
        problems = (*placed.wrong, *placed.unasked.values())
        mistakes += [f"{source}: {problem}" for problem in problems]
        yield WarmStart(placed.point, source)


def source_label(source: str) -> str:
    """Returns a source of `study.from`, a run directory or a URL, without its password."""
    if "://" not in source:
        return str(Path(source))
    url, _, name = source.partition("#")
    return f"{without_password(parse_url(url))}#{name}".removesuffix("#")
