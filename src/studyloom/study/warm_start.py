"""Warm starts: the configurations that a study tries first, from its user or earlier studies.

`study.enqueue` lists known good ones. `study.warm_start` takes the best trials of an earlier study,
or a portfolio of several: those that it names or, as `auto`, those that are found. Each becomes a
waiting trial with fixed hyperparameters before any worker starts. The study definition is the same
with them and without.

People, programs and agents propose further ones while the search runs (`extras.proposals`). What
these are checked against is stored with the study.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studyloom.config.schema import AUTO
from studyloom.config.values import value_at
from studyloom.errors import refuse
from studyloom.space.tree import Point
from studyloom.storage import sql
from studyloom.storage.attributes import BASELINE, ENQUEUED, SPACE, WARM_START
from studyloom.storage.database import Connection
from studyloom.study.earlier_studies import EarlierStudies, EarlierStudy, offer_earlier, read_named
from studyloom.study.placement import PlacedPoint, PlacedTrial, choose_trials, place_point
from studyloom.study.redo import missing_baseline
from studyloom.study.stored_study import StoredStudy
from studyloom.study.strategy import Strategy
from studyloom.text import as_yaml

if TYPE_CHECKING:  # torch takes two seconds, which a proposer need not wait for
    from studyloom.definition.definition import Definition

log = logging.getLogger(__name__)
LOOKED = 4  # at most one of so many trials is a warm start from a study that `auto` found


@dataclass(frozen=True)
class WarmStart:
    """A configuration to begin with.

    Attributes:
        source: where it is from, for people: "study.enqueue[0]", "runs/old, trial 7".
        earlier: the label of the earlier study of which it is a trial; None if the user gave it.
    """

    point: Point
    source: str
    earlier: str | None = None


def take_points(
    definition: "Definition",
    studies: Sequence[EarlierStudy],
    top: int,
    notes: list[str],
    *,
    looked: bool,
) -> list[WarmStart]:
    """Chooses trials of earlier studies whose configurations fit this study's space.

    Of a single study these are the best, of several a portfolio.

    Args:
        looked: whether `auto` has found these studies, of which many may not fit.
    """
    taken = defaultdict[int, list[PlacedTrial]](list)
    starts: list[WarmStart] = []
    for number, trial in choose_trials(definition, studies, top, alone=not looked):
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


def _note_taken(earlier: EarlierStudy, taken: Sequence[PlacedTrial]) -> str:
    """Notes which trials of an earlier study are tried first, and how they differ here."""
    differences: list[str] = []
    for placed in (trial.placed for trial in taken):
        differences += [f"{name} has its default value" for name in placed.composed]
        differences += [f"{name} is not searched here" for name in placed.unasked]
    numbers = ", ".join(str(trial.number) for trial in taken)
    head = f"{earlier.label}: begins with its trial{'s' * (len(taken) > 1)} {numbers}"
    return "; ".join([head, *dict.fromkeys(differences)])


@dataclass(frozen=True)
class WarmStarts:
    """All configurations to begin with, and notes about them for people.

    Attributes:
        sources: the earlier studies, without passwords, and `auto` if that has found them.
    """

    points: Sequence[WarmStart] = ()
    sources: Sequence[str] = ()
    notes: Sequence[str] = ()


def find_warm_starts(
    definition: "Definition",
    begun: Sequence[str] | None = None,
    look: Callable[[], EarlierStudies] = EarlierStudies,
) -> WarmStarts:
    """Finds the configurations that `study.enqueue` and `study.warm_start` name.

    Args:
        begun: the earlier studies of which the study has trials already; they are not read again.
            None if the study has no trials: only then `study.warm_start=auto` looks for studies.
        look: finds earlier studies for `study.warm_start=auto`.

    Raises:
        ConfigError: every configuration outside the space, and every missing earlier study.
    """
    study = definition.config.study
    enqueued = value_at(definition.config, "study.enqueue")
    wanted = value_at(definition.config, "study.warm_start")
    strategy = Strategy(definition)
    listed = strategy.points is not None
    fixed = listed or definition.suggests
    if wanted == AUTO and (begun is not None or fixed):
        wanted = None
    errors: list[str] = []
    notes: list[str] = []
    if study.warm_start is None and strategy.trials > LOOKED and not fixed:
        notes += offer_earlier(Path(definition.config.run_dir))
    if not enqueued and not wanted:
        return WarmStarts(notes=notes)
    points = list(_enqueued_points(definition, enqueued, errors, notes))
    if listed:
        errors.append(
            "sampler=grid: tries each configuration of the space once, so study.enqueue and "
            "study.warm_start add nothing; remove them, or choose another sampler"
        )
    room = strategy.trials - (definition.baseline is not None) - len(points)
    if room < 0:
        errors.append(
            f"study.enqueue: {-room} of {len(points)} configurations do not fit into "
            f"study.trials={study.trials}; raise study.trials, or remove some"
        )
    looked, found = wanted == AUTO, EarlierStudies()
    sources, studies = list[str](), found.studies
    if not looked:
        sources, studies = read_named(wanted or [], begun or (), errors, notes)
    elif (room := room // LOOKED) > 0 and not errors:
        found = look()
        studies = found.studies
    refuse(errors)
    taken = take_points(definition, studies, min(study.warm_start_top, room), notes, looked=looked)
    if looked and taken:
        sources, notes = [AUTO], [*found.notes, *notes]
    labels = {start.earlier for start in taken}
    from_where = [each.label for each in studies if each.label in labels]
    return WarmStarts([*points, *taken], [*dict.fromkeys([*sources, *from_where])], notes)


def _enqueued_points(
    definition: "Definition", enqueued: Any, errors: list[str], notes: list[str]
) -> Iterator[WarmStart]:
    if not isinstance(enqueued, list) or not all(isinstance(item, Mapping) for item in enqueued):
        errors.append(
            "study.enqueue must be a list of configurations, such as [{model: cnn, …}, …]; "
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
        errors += [f"{source}: {problem}" for problem in problems]
        if not placed.breaks:
            yield WarmStart(placed.point, source)


def store_warm_starts(
    stored: StoredStudy, definition: "Definition", starts: WarmStarts, trials: int
) -> None:
    """Stores what proposals are checked against, and queues the configurations to try first."""
    store_space(stored, definition)
    if definition.baseline is not None and (missing := missing_baseline(stored)) is not None:
        log.warning("%s", missing)
    if left := enqueue(stored, starts, trials, baseline=definition.baseline):
        log.warning(
            "%d configurations to begin with are left out: all %d trials have begun; "
            "raise study.trials",
            left,
            trials,
        )


# The attributes of a baseline that waits.
AS_COMPOSED = {BASELINE: True, ENQUEUED: "the default configuration"}


def sources_of(stored: StoredStudy) -> list[str]:
    """Returns the earlier studies of which a study has trials."""
    return list(stored.optuna.user_attrs.get(WARM_START, []))


def enqueue(stored: StoredStudy, starts: WarmStarts, trials: int, *, baseline: Point | None) -> int:
    """Queues each configuration that no trial of the study has tried, in one transaction.

    The baseline is queued first, because it is trial 0. An earlier study is left out if the study
    has trials from it already; earlier studies that `auto` found are left out once the study has
    any trial.

    Returns:
        How many configurations found no free slot.
    """
    study_id = stored.ledger.study_id

    def queue(connection: Connection) -> int:
        before = stored.lock_trials(connection)
        tried = [trial.system_attrs.get(sql.GIVEN, trial.params) for trial in before]
        known = sql.study_attrs(connection, study_id, WARM_START)[0] or []
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
        slots = stored.ledger.never_claimed(connection, trials) if waiting else []
        for slot, (point, attributes) in zip(slots, waiting, strict=False):
            stored.ledger.queue(connection, slot, point, attributes)
        if sources := [*dict.fromkeys([*known, *(() if again else starts.sources)])]:
            sql.set_study_attr(connection, study_id, WARM_START, sources)
        return max(0, len(waiting) - len(slots))

    return stored.ledger.storage.execute(queue) if starts.points or starts.sources else 0


# Proposals


def store_space(stored: StoredStudy, definition: "Definition") -> None:
    """Stores what proposals are checked against; None for sampler=grid, or if trials suggest."""
    space, composer, starts = definition.space, definition.composer, dict[str, Any]()
    options = defaultdict[str, list[str]](list)
    for group in space.groups():
        options[group.config_group] += group.options
    for choices, nodes in space.branches():
        point = space.stand_in({**composer.choices, **choices})
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
    fixed = definition.suggests or Strategy(definition).points is not None
    stored.optuna.set_user_attr(SPACE, None if fixed else known)
