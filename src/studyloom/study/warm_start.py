"""Warm starts: the points that a study tries first, from its user or from earlier studies.

`study.enqueue` lists known good points. `study.from` takes the best trials of an earlier study, or
a portfolio of several: those that it names or, as `auto`, those that are found. Each point becomes
a waiting trial with fixed parameters before any worker starts. The question of the study is the
same with them and without.

People, programs and agents propose further points while the search runs (`extras.proposals`). What
these are checked against is stored with the study.
"""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import FrozenTrial

from studyloom.config.schema import AUTO
from studyloom.config.values import has_key, value_at
from studyloom.errors import refuse
from studyloom.space.tree import (
    Parameter,
    Point,
    composed_value,
    group_of,
    is_ordered,
    place_in,
    stand_in,
    why_not,
)
from studyloom.storage import sql
from studyloom.storage.attributes import BASELINE, ENQUEUED, FAILURE, SLOT, SOURCES, SPACE
from studyloom.storage.database import Connection, execute
from studyloom.storage.ledger import SlotEntry, enter, never_claimed
from studyloom.study.earlier_studies import (
    Earlier,
    EarlierStudy,
    Remembered,
    choose_points,
    offer_earlier,
    rank_scores,
    read_earlier,
    source_label,
)
from studyloom.study.failures import NO_REASON, TEACHES, outcome, reason_of
from studyloom.study.stored_study import StoredStudy
from studyloom.text import as_yaml, nearest

if TYPE_CHECKING:  # torch takes two seconds, which a proposer need not wait for
    from studyloom.definition.definition import Definition

ABSENT = object()


@dataclass
class PlacedPoint:
    """Parameters placed in a space; a wrong value is replaced by the low end of its range.

    Attributes:
        unasked: messages about parameters that the space does not have at this point, by name.
        composed: the names of the parameters that were not given and have their composed value.
        breaks: whether all values are possible, but together break a relation, as `wrong` says.
    """

    point: Point = field(default_factory=Point)
    wrong: list[str] = field(default_factory=list)
    unasked: dict[str, str] = field(default_factory=dict)
    composed: list[str] = field(default_factory=list)
    breaks: bool = False


def place_point(definition: Any, parameters: Mapping[str, Any]) -> PlacedPoint:
    """Finds the point of a space at which given parameters lie.

    A trial of another space, with other options or fewer of them, is placed by the config keys
    that both spaces search. Parameters that are not given have their composed value.

    Args:
        question: whatever has its `space`, and the `composer` of its points.
        parameters: values by parameter name in this space, or by config key; possibly nested.
    """
    flat = dict(_flatten(parameters))
    key_of = _config_keys(flat)
    name_of = {key: name for name, key in key_of.items()}
    used = set[str]()

    def look_up(parameter: Parameter) -> Any:
        suffix = {"length": ".length", "item": f".{parameter.index}"}.get(parameter.role, "")
        name = parameter.name if parameter.name in flat else name_of.get(parameter.key + suffix)
        if name is None:
            return ABSENT
        used.add(name)
        return flat[name]

    def choose(parameter: Parameter) -> Any:
        option = look_up(parameter) if parameter.role == "option" else ABSENT
        if option is not ABSENT and why_not(parameter.distribution, option) is None:
            return option
        return stand_in(definition.composer.choices, parameter)

    choices = definition.space.walk(choose).choices
    composed = definition.composer.compose(choices)
    placed = PlacedPoint()

    def decide(parameter: Parameter) -> Any:
        value, name = look_up(parameter), parameter.name
        subject = f"{name}={as_yaml(value)}"
        if value is ABSENT:
            value = composed_value(choices, partial(value_at, composed), parameter)
            placed.composed.append(name)
            subject = f"{name} is not given, and its composed value {as_yaml(value)}"
        if problem := why_not(parameter.distribution, value):
            placed.wrong.append(f"{subject} {problem}")
            return stand_in({}, parameter)  # its low end
        return float(value) if isinstance(parameter.distribution, FloatDistribution) else value

    placed.point = definition.space.walk(decide)
    for name in [name for name in flat if name not in used]:
        _check_unasked(definition, placed, name, key_of[name], flat[name], composed)
    if not placed.wrong and (words := definition.space.breach(placed.point.params)) is not None:
        placed.breaks, placed.wrong = True, [words]
    return placed


def _check_unasked(
    definition: Any, placed: PlacedPoint, name: str, key: str, value: Any, composed: Any
) -> None:
    """Checks a given parameter that the space lacks at the point: it may agree with the config."""
    subject = f"{name}={as_yaml(value)}"
    keys = {leaf.name: leaf.key for leaf in definition.space.leaves(placed.point.choices)}
    above = (each.removesuffix(".length") for each in (name, key))
    lists = [placed.point.values.get(keys.get(each, each)) for each in above]
    if any(isinstance(each, list) and len(each) == value for each in lists):
        return  # of a length that is not searched
    choices = {**definition.composer.choices, **placed.point.choices}
    if (option := choices.get(group_of(key))) is not None:
        if option != value:
            placed.wrong.append(f"{subject}, but here it is {option}")
        return
    if not has_key(composed, key) or value_at(composed, key) != value:
        hint = nearest(name, [*placed.point.params])
        placed.unasked[name] = f"{subject} is not a parameter of this point{hint}"


def _flatten(parameters: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields nested parameters by name; a list as its length and its items."""
    for key, value in parameters.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{name}.")
        elif isinstance(value, list | tuple):
            yield f"{name}.length", len(value)
            yield from ((f"{name}.{index}", item) for index, item in enumerate(value))
        else:
            yield name, value


def _config_keys(parameters: Mapping[str, Any]) -> dict[str, str]:
    """Returns the config key of each name: the name without the options that are chosen."""
    keys = {}
    groups = sorted(parameters, key=len, reverse=True)
    for name in parameters:
        key = name
        for group in groups:
            inside = f"{group}.{parameters[group]}."
            if key.startswith(inside):
                key = f"{group}.{key.removeprefix(inside)}"
        keys[name] = key
    return keys


# Trials of a study that may be chosen for a portfolio. With all 40, portfolios were worse by .01 on
# HPOBench: an estimate can be wrong about a point that its own study found bad.
CANDIDATES = 10
LOOKED = 4  # at most one trial of so many begins at a point of a study that nobody has named
MOST_PLACED = 2000  # trials of all studies that are placed in the space, at 1 ms each


@dataclass(frozen=True)
class WarmStart:
    """A point to begin with, and for people its source: "study.enqueue[0]", "runs/old, trial 7".

    Attributes:
        earlier: the label of the earlier study of which it is a trial; None for one of the user's.
    """

    point: Point
    source: str
    earlier: str | None = None


def take_points(
    definition: "Definition",
    studies: Sequence[Earlier],
    top: int,
    notes: list[str],
    *,
    looked: bool,
) -> list[WarmStart]:
    """Chooses trials of earlier studies that are points of this study's space too.

    Of a single study these are the best, of several a portfolio.

    Args:
        looked: whether these are studies that nobody has named, of which many may not fit.
    """
    taken = defaultdict[int, list[PlacedTrial]](list)
    starts: list[WarmStart] = []
    for number, trial in _choose(definition, studies, top, alone=not looked):
        taken[number].append(trial)
        label = studies[number].label
        starts.append(WarmStart(trial.placed.point, f"{label}, trial {trial.number}", label))
    for number, earlier in enumerate(studies):
        if number in taken:
            notes.append(_note_taken(earlier, taken[number]))
        elif not looked:
            places = [place_point(definition, trial.params) for trial in earlier.ranked[:1]]
            wrong = "; ".join(words for placed in places for words in placed.wrong)
            why = f": {wrong}" if wrong else ""
            notes.append(f"{earlier.label}: none of its trials is taken{why}")
    return starts


def _choose(
    definition: "Definition", studies: Sequence[Earlier], top: int, *, alone: bool
) -> Iterator[tuple[int, "PlacedTrial"]]:
    """Yields the trials to take, each with the position of its study."""
    if alone and len(studies) == 1:
        best = (trial for trial in _place_trials(definition, studies[0], top) if trial.eligible)
        yield from ((0, trial) for trial in itertools.islice(best, top))
        return
    most = max(2 * CANDIDATES, MOST_PLACED // max(1, len(studies)))
    placed = [[*_place_trials(definition, earlier, top, most)] for earlier in studies]
    names: dict[str, BaseDistribution] = {}
    for trial in itertools.chain.from_iterable(placed):
        names |= trial.placed.point.distributions
    tables = [_coordinates(trials, names) for trials in placed]
    categorical = np.array([not is_ordered(each) for each in names.values()], dtype=bool)
    for number, row in choose_points(tables, categorical, top):
        yield number, placed[number][row]


@dataclass(frozen=True)
class PlacedTrial:
    """A trial of an earlier study in the space, with the score of its rank, from 0 to 1."""

    number: int
    placed: PlacedPoint
    score: float
    eligible: bool


def _place_trials(
    definition: "Definition", earlier: Earlier, top: int, most: int = MOST_PLACED
) -> Iterator[PlacedTrial]:
    """Places trials of an earlier study: of more than `most`, the best, and others evenly."""
    trials = [*earlier.ranked, *earlier.behind]
    scores = rank_scores(len(earlier.ranked), len(earlier.behind))
    baseline = None if definition.baseline is None else definition.baseline.params
    rows = [*range(len(trials))]
    if len(rows) > most:
        rest = np.linspace(CANDIDATES, len(trials) - 1, most - CANDIDATES)
        rows = [*rows[:CANDIDATES], *rest.round().astype(int).tolist()]
    few = max(CANDIDATES, top)
    for row in rows:
        try:
            at = place_point(definition, trials[row].params)
        except Exception:  # a name that no key can have, in what somebody else has written
            continue
        if not at.wrong and len(at.composed) < len(at.point.params):
            eligible = few > 0 and row < len(earlier.ranked) and at.point.params != baseline
            few -= eligible
            yield PlacedTrial(trials[row].number, at, float(scores[row]), eligible)


def _coordinates(
    trials: Sequence[PlacedTrial], names: Mapping[str, BaseDistribution]
) -> EarlierStudy:
    """Turns placed trials into rows of numbers, a column for each parameter of the space."""
    points = np.full((len(trials), len(names)), np.nan)
    columns = {name: column for column, name in enumerate(names)}
    for row, trial in enumerate(trials):
        for name, value in trial.placed.point.params.items():
            points[row, columns[name]] = place_in(names[name], value)
    scores = np.array([trial.score for trial in trials])
    return EarlierStudy(points, scores, np.array([t.eligible for t in trials], dtype=bool))


def _note_taken(earlier: Earlier, taken: Sequence[PlacedTrial]) -> str:
    """Words which trials of an earlier study are tried first, and how they differ here."""
    differences: list[str] = []
    for placed in (trial.placed for trial in taken):
        differences += [f"{name} has its composed value" for name in placed.composed]
        differences += [f"{name} is not searched here" for name in placed.unasked]
    numbers = ", ".join(str(trial.number) for trial in taken)
    head = f"{earlier.label}: begins with its trial{'s' * (len(taken) > 1)} {numbers}"
    return "; ".join([head, *dict.fromkeys(differences)])


@dataclass(frozen=True)
class WarmStarts:
    """All points to begin with.

    Attributes:
        sources: the earlier studies, without passwords, and `auto` if that has found them.
    """

    points: Sequence[WarmStart] = ()
    sources: Sequence[str] = ()
    notes: Sequence[str] = ()


def find_warm_starts(
    definition: "Definition",
    begun: Sequence[str] | None = None,
    remember: Callable[[], Remembered] = Remembered,
) -> WarmStarts:
    """Finds the points that `study.enqueue` and `study.from` name.

    Args:
        begun: the earlier studies of which the study has trials already; they are not read again.
            None of a study without trials, which alone looks for others by `study.from=auto`.
        remember: looks for them.

    Raises:
        ConfigError: every point that the space cannot give, and each earlier study that is missing.
    """
    study = definition.config.study
    enqueued = value_at(definition.config, "study.enqueue")
    wanted = value_at(definition.config, "study.from")
    listed = getattr(definition.sampler(0), "points", None) is not None
    if wanted == AUTO and (begun is not None or listed or definition.suggests):
        wanted = None
    mistakes: list[str] = []
    notes: list[str] = []
    if (
        study["from"] is None
        and definition.trials() > LOOKED
        and not (listed or definition.suggests)
    ):
        notes += offer_earlier(Path(definition.config.run_dir))
    if not enqueued and not wanted:
        return WarmStarts(notes=notes)
    points = list(_enqueued_points(definition, enqueued, mistakes, notes))
    if listed:
        mistakes.append(
            "sampler=grid: tries each point of the space once, so study.enqueue and study.from "
            "add nothing; remove them, or choose another sampler"
        )
    room = definition.trials() - (definition.baseline is not None) - len(points)
    if room < 0:
        mistakes.append(
            f"study.enqueue: {-room} of {len(points)} points find no room in "
            f"study.trials={study.trials}; raise study.trials, or remove points"
        )
    sources, studies, looked = list[str](), list[Earlier](), wanted == AUTO
    if looked:
        room //= LOOKED
    else:
        sources, studies = _read_named(wanted or [], begun or (), mistakes, notes)
    found = Remembered()
    if looked and room > 0 and not mistakes:
        found = remember()
        studies = [*found.studies]
    refuse(mistakes)
    taken = take_points(definition, studies, min(study.top, room), notes, looked=looked)
    if looked and taken:
        sources, notes = [AUTO], [*found.notes, *notes]
    labels = {start.earlier for start in taken}
    from_where = [each.label for each in studies if each.label in labels]
    return WarmStarts([*points, *taken], [*dict.fromkeys([*sources, *from_where])], notes)


def _read_named(
    wanted: Any, begun: Sequence[str], mistakes: list[str], notes: list[str]
) -> tuple[list[str], list[Earlier]]:
    """Reads the earlier studies that `study.from` names, each once.

    Returns:
        The label of each, and the studies but those that have begun.
    """
    labels: list[str] = []
    studies: dict[str, Earlier] = {}
    for source in wanted if isinstance(wanted, list) else [wanted]:
        try:
            if not isinstance(source, str) or source in ("", AUTO):
                raise ValueError(
                    "must be run directories or URLs of databases, or auto alone, which looks for "
                    f"earlier studies itself; got {source!r}"
                )
            labels.append(source_label(source))
            if labels[-1] in (*begun, *labels[:-1]):
                continue
            earlier = read_earlier(source)
        except ValueError as error:
            mistakes += [f"study.from: {line}" for line in getattr(error, "mistakes", [str(error)])]
            continue
        if earlier.open:
            notes.append(f"{earlier.label}: is not finished: {earlier.open} trials are open")
        studies.setdefault(earlier.uuid or source, earlier)
    return labels, [*studies.values()]


def _enqueued_points(
    definition: "Definition", enqueued: Any, mistakes: list[str], notes: list[str]
) -> Iterator[WarmStart]:
    if not isinstance(enqueued, list) or not all(isinstance(item, Mapping) for item in enqueued):
        mistakes.append(
            "study.enqueue must be a list of points, such as [{model: cnn, …}, …]; "
            f"got {as_yaml(enqueued)}"
        )
        return
    for index, parameters in enumerate(enqueued):
        source = f"study.enqueue[{index}]"
        given = PlacedPoint(Point(params={**parameters}))
        placed = given if definition.suggests else place_point(definition, parameters)
        if placed.breaks:
            notes.append(f"{source}: is left out, since it {placed.wrong.pop()}")
        problems = (*placed.wrong, *placed.unasked.values())
        mistakes += [f"{source}: {problem}" for problem in problems]
        if not placed.breaks:
            yield WarmStart(placed.point, source)


# The attributes of a baseline that waits.
AS_COMPOSED = {BASELINE: True, ENQUEUED: "the configuration as composed"}


def sources_of(stored: StoredStudy) -> list[str]:
    """Returns the earlier studies of which a study has trials."""
    return list(stored.optuna.user_attrs.get(SOURCES, []))


def enqueue(stored: StoredStudy, starts: WarmStarts, trials: int, *, baseline: Point | None) -> int:
    """Queues each point that no trial of the study has tried, all of them in one transaction.

    The baseline is queued before the first point, because it is trial 0. Of an earlier study from
    which the study has trials already no further ones are taken, and of those that nobody has named
    none once it has any trial.

    Returns:
        How many points found no free slot.
    """
    study_id = stored.ledger.study_id

    def queue(connection: Connection) -> int:
        before = stored.lock_trials(connection)
        tried = [trial.system_attrs.get(sql.GIVEN, trial.params) for trial in before]
        (known,) = sql.study_attrs(connection, study_id, SOURCES)
        known = known or []
        again = bool(before) if AUTO in starts.sources else {*starts.sources} <= {*known}
        points = [start for start in starts.points if not (start.earlier and again)]
        waiting: list[tuple[Point, dict[str, Any]]] = []
        if baseline is not None:
            if not tried and points:
                waiting.append((Point(), AS_COMPOSED))
            tried.append(baseline.params)
        for start in points:
            if start.point.params not in tried:
                tried.append(start.point.params)
                waiting.append((start.point, {ENQUEUED: start.source}))
        slots = never_claimed(connection, study_id, trials) if waiting else []
        for slot, (point, attributes) in zip(slots, waiting, strict=False):
            queue_trial(connection, study_id, slot, point, attributes)
        if sources := [*dict.fromkeys([*known, *(() if again else starts.sources)])]:
            sql.set_study_attr(connection, study_id, SOURCES, sources)
        return max(0, len(waiting) - len(slots))

    return execute(stored.ledger.storage, queue) if starts.points or starts.sources else 0


def queue_trial(
    connection: Connection, study_id: int, slot: int, point: Point, attributes: dict[str, Any]
) -> FrozenTrial:
    """Makes a waiting trial of a point, and opens a slot for it."""
    trial = sql.insert(connection, study_id, {SLOT: slot, **attributes}, point)
    enter(connection, study_id, [SlotEntry(slot, "free", trial._trial_id)])
    return trial


def failed_baseline(trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """Returns the baseline if it has failed; None if there is one that has not, or none at all."""
    baselines = [trial for trial in trials if BASELINE in trial.user_attrs]
    failed = bool(baselines) and all(outcome(trial) == "failed" for trial in baselines)
    return baselines[-1] if failed else None


def redo_baseline(stored: StoredStudy) -> None:
    """Opens the slot of a baseline that has failed for a new trial of the same configuration.

    The failed trial is set aside: it is kept, but no longer counted, so that N trials stay N.
    Nothing changes if the baseline has not failed.
    """
    study_id = stored.ledger.study_id

    def redo(connection: Connection) -> None:
        if (failed := failed_baseline(stored.lock_trials(connection))) is not None:
            sql.write(connection, [(sql.SET_ASIDE, {"id": failed._trial_id})])
            queue_trial(connection, study_id, failed.user_attrs[SLOT], Point(), AS_COMPOSED)

    execute(stored.ledger.storage, redo)
    stored.storage.forget(study_id)


def missing_baseline(stored: StoredStudy) -> str | None:
    """Words what can be done about a baseline that failed by a bug; None if nothing need be done.

    One whose training diverged, or whose network was too large, would only do so again.
    """
    failed = failed_baseline(stored.trials())
    if failed is None or failed.user_attrs.get(FAILURE) in TEACHES:
        return None
    reason = reason_of(failed) or NO_REASON
    return (
        f"the baseline, trial {failed.number}, has failed ({reason}), so that nothing is compared "
        "with it; once the cause is mended, study.redo_baseline=true trains it again"
    )


# Proposals


def store_space(stored: StoredStudy, definition: "Definition") -> None:
    """Stores what proposals are checked against; None of a list of points, or if trials suggest."""
    space, composer, starts = definition.space, definition.composer, dict[str, Any]()
    options = defaultdict[str, list[str]](list)
    for group in space.groups():
        options[group_of(group.key)] += group.options
    for choices, nodes in space.branches():
        point = space.walk(partial(stand_in, {**composer.choices, **choices}))
        config = composer.compose(point.choices)
        starts |= {leaf.name: value_at(config, leaf.key) for leaf in nodes}
    known = {
        "tree": value_at(definition.config, "space") or {},
        "options": options,
        "choices": {group: composer.choices.get(group) for group in options},
        "starts": starts,
        "baseline": definition.baseline is not None,
        "share": definition.config.study.proposals,
    }
    listed = definition.suggests or getattr(definition.sampler(0), "points", None)
    stored.optuna.set_user_attr(SPACE, None if listed else known)
