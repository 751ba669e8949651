"""Warm starts: the configurations that a study tries first, from its user or earlier studies.

`study.enqueue` lists known good ones. `study.warm_start` takes the best trials of the earlier
studies that it names. Each becomes a waiting trial with fixed hyperparameters before any worker
starts. The study definition is the same with them and without.

People, programs and agents propose further ones while the search runs (`extras.proposals`). What
these are checked against is stored with the study.
"""

import logging
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from studyloom.config.values import value_at
from studyloom.decisions.earlier_studies import EarlierStudy, read_named
from studyloom.decisions.placement import PlacedPoint, place_point
from studyloom.decisions.strategy import Strategy
from studyloom.errors import refuse
from studyloom.space.tree import Point
from studyloom.storage import sql
from studyloom.storage.attributes import BASELINE, ENQUEUED, SPACE, WARM_START
from studyloom.storage.database import Connection
from studyloom.storage.redo import missing_baseline
from studyloom.storage.stored_study import StoredStudy
from studyloom.text import as_yaml

if TYPE_CHECKING:  # torch takes two seconds, which a proposer need not wait for
    from studyloom.definition.definition import Definition

log = logging.getLogger(__name__)
MOST_PLACED = 2000  # of an earlier study's best trials; to place one takes 1 ms


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


@dataclass(frozen=True)
class PlacedTrial:
    """A trial of an earlier study, placed in the space of this one."""

    earlier: EarlierStudy
    number: int
    placed: PlacedPoint


def choose_trials(
    definition: "Definition", studies: Sequence[EarlierStudy], count: int
) -> list[PlacedTrial]:
    """Chooses the best trials of earlier studies whose configurations fit this study's space.

    The studies take turns: the best trial of each, then the second best of each, and so on. The
    values of different studies are not compared, since their scales may differ.

    Returns:
        At most `count` trials in the order in which they are tried, none with the configuration
        of another or of the baseline.
    """
    chosen: list[PlacedTrial] = []
    configurations = [] if definition.baseline is None else [definition.baseline.params]
    turns = deque(_fitting_trials(definition, earlier) for earlier in studies)
    while turns and len(chosen) < count:
        trials = turns.popleft()
        for trial in trials:
            configuration = trial.placed.point.params
            if configuration not in configurations:
                chosen.append(trial)
                configurations.append(configuration)
                turns.append(trials)
                break
    return chosen


def _fitting_trials(definition: "Definition", earlier: EarlierStudy) -> Iterator[PlacedTrial]:
    """Yields trials of an earlier study that this study's space can hold, the best first."""
    for trial in earlier.ranked[:MOST_PLACED]:
        try:
            placed = place_point(definition, trial.params)
        except Exception:  # a name that no key can have, in untrusted content
            continue
        has_values = len(placed.defaulted) < len(placed.point.params)
        if has_values and not placed.errors:
            yield PlacedTrial(earlier, trial.number, placed)


def _note_taken(
    definition: "Definition", earlier: EarlierStudy, chosen: Sequence[PlacedTrial]
) -> str:
    """Notes which trials of an earlier study are tried first, and how they differ here."""
    trials = [trial for trial in chosen if trial.earlier is earlier]
    if not trials:
        return _note_none_taken(definition, earlier)
    differences: list[str] = []
    for trial in trials:
        differences += [f"{name} has its default value" for name in trial.placed.defaulted]
        differences += [f"{name} is not searched here" for name in trial.placed.unknown]
    noun = "trial" if len(trials) == 1 else "trials"
    numbers = ", ".join(str(trial.number) for trial in trials)
    head = f"{earlier.label}: begins with its {noun} {numbers}"
    return "; ".join([head, *dict.fromkeys(differences)])


def _note_none_taken(definition: "Definition", earlier: EarlierStudy) -> str:
    """Notes that no trial of an earlier study is tried, and what is wrong with the best one."""
    note = f"{earlier.label}: none of its trials is taken"
    if not earlier.ranked:
        return note
    problems = place_point(definition, earlier.ranked[0].params).errors
    return f"{note}: {'; '.join(problems)}" if problems else note


@dataclass(frozen=True)
class WarmStarts:
    """All configurations to begin with, and notes about them for people.

    Attributes:
        sources: the earlier studies that `study.warm_start` names, without passwords.
    """

    points: Sequence[WarmStart] = ()
    sources: Sequence[str] = ()
    notes: Sequence[str] = ()


def find_warm_starts(definition: "Definition", begun: Sequence[str] = ()) -> WarmStarts:
    """Finds the configurations that `study.enqueue` and `study.warm_start` name.

    Args:
        begun: the earlier studies of which the study has trials already; they are not read again.

    Raises:
        ConfigError: every configuration outside the space, and every missing earlier study.
    """
    study = definition.config.study
    enqueued = value_at(definition.config, "study.enqueue")
    named = value_at(definition.config, "study.warm_start")
    if not enqueued and not named:
        return WarmStarts()
    strategy = Strategy(definition)
    errors: list[str] = []
    notes: list[str] = []
    points = list(_enqueued_points(definition, enqueued, errors, notes))
    if strategy.points is not None:
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
    sources, studies = read_named(named or [], begun, errors, notes)
    refuse(errors)
    chosen = choose_trials(definition, studies, min(study.warm_start_top, room))
    notes += [_note_taken(definition, earlier, chosen) for earlier in studies]
    for trial in chosen:
        label = trial.earlier.label
        points.append(WarmStart(trial.placed.point, f"{label}, trial {trial.number}", label))
    return WarmStarts(points, sources, notes)


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
        if placed.breaks_relation:
            notes.append(f"{source}: is left out, since it {placed.errors.pop()}")
        problems = (*placed.errors, *placed.unknown.values())
        errors += [f"{source}: {problem}" for problem in problems]
        if not placed.breaks_relation:
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
    has trials from it already.

    Returns:
        How many configurations found no free slot.
    """
    study_id = stored.ledger.study_id

    def queue(connection: Connection) -> int:
        before = stored.lock_trials(connection)
        tried = [trial.system_attrs.get(sql.FIXED_PARAMS, trial.params) for trial in before]
        known = sql.study_attrs(connection, study_id, WARM_START)[0] or []
        points = [start for start in starts.points if start.earlier not in known]
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
        sources = [*dict.fromkeys([*known, *starts.sources])]
        if sources:
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
        point = space.make_placeholder({**composer.choices, **choices})
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
