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

from optuna.trial import FrozenTrial

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
from studyloom.text import format_scalar

if TYPE_CHECKING:  # torch takes two seconds, which a proposer need not wait for
    from studyloom.definition.definition import Definition

log = logging.getLogger(__name__)
MOST_PLACED = 2000  # of an earlier study's best trials; to place one takes 1 ms
# The attributes of a baseline that waits.
BASELINE_ATTRIBUTES = {BASELINE: True, ENQUEUED: "the default configuration"}


@dataclass(frozen=True)
class WarmStart:
    """A configuration to begin with.

    Attributes:
        point: The configuration.
        source: Where it is from, for people: "study.enqueue[0]", "runs/old, trial 7".
        earlier: The label of the earlier study of which it is a trial; None if the user gave it.
    """

    point: Point
    source: str
    earlier: str | None = None


@dataclass(frozen=True)
class QueuedTrial:
    """A trial that waits with fixed hyperparameters.

    Attributes:
        point: Its hyperparameters.
        attributes: Its attributes, such as where its configuration is from.
    """

    point: Point
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class EnqueuedPoints:
    """The configurations that `study.enqueue` lists.

    Attributes:
        starts: Those that are tried.
        errors: What is wrong with others; the study does not begin then.
        notes: Which others are left out without an error.
    """

    starts: Sequence[WarmStart] = ()
    errors: Sequence[str] = ()
    notes: Sequence[str] = ()


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
    chosen_trials: list[PlacedTrial] = []
    configurations = []
    if definition.baseline is not None:
        configurations.append(definition.baseline.params)
    # An iterator for each study, from which its remaining trials come; that of the next turn first.
    turns = deque(_fitting_trials(definition, earlier) for earlier in studies)
    while turns and len(chosen_trials) < count:
        trials = turns.popleft()
        for trial in trials:
            configuration = trial.placed.point.params
            if configuration not in configurations:
                chosen_trials.append(trial)
                configurations.append(configuration)
                turns.append(trials)  # its next turn comes after those of all others
                break
    return chosen_trials


def _fitting_trials(definition: "Definition", earlier: EarlierStudy) -> Iterator[PlacedTrial]:
    """Yields trials of an earlier study that this study's space can hold, the best first."""
    for trial in earlier.ranked[:MOST_PLACED]:
        try:
            placed = place_point(definition, trial.params)
        except Exception:  # the study is untrusted: it may have names that no key can have
            continue
        # A configuration whose values are all defaults has nothing from the earlier study.
        has_own_values = len(placed.defaulted) < len(placed.point.params)
        if has_own_values and not placed.errors:
            yield PlacedTrial(earlier, trial.number, placed)


def _describe_taken(
    definition: "Definition", earlier: EarlierStudy, chosen_trials: Sequence[PlacedTrial]
) -> str:
    """Says which trials of an earlier study are tried first, and how they differ here."""
    trials = [trial for trial in chosen_trials if trial.earlier is earlier]
    if not trials:
        return _describe_none_taken(definition, earlier)
    differences: list[str] = []
    for trial in trials:
        differences += [f"{name} has its default value" for name in trial.placed.defaulted]
        differences += [f"{name} is not searched here" for name in trial.placed.unknown]
    noun = "trials"
    if len(trials) == 1:
        noun = "trial"
    numbers = ", ".join(str(trial.number) for trial in trials)
    parts = [f"{earlier.label}: begins with its {noun} {numbers}"]
    parts += dict.fromkeys(differences)
    return "; ".join(parts)


def _describe_none_taken(definition: "Definition", earlier: EarlierStudy) -> str:
    """Says that no trial of an earlier study is tried, and what is wrong with the best one."""
    note = f"{earlier.label}: none of its trials is taken"
    if not earlier.ranked:
        return note
    errors = place_point(definition, earlier.ranked[0].params).errors
    if not errors:
        return note
    return f"{note}: {'; '.join(errors)}"


@dataclass(frozen=True)
class WarmStarts:
    """All configurations to begin with.

    Attributes:
        points: The configurations, in the order in which they are tried.
        sources: The earlier studies that `study.warm_start` names, without passwords.
        notes: Lines about what is taken, for people.
    """

    points: Sequence[WarmStart] = ()
    sources: Sequence[str] = ()
    notes: Sequence[str] = ()


def find_warm_starts(definition: "Definition", begun: Sequence[str] = ()) -> WarmStarts:
    """Finds the configurations that `study.enqueue` and `study.warm_start` name.

    Args:
        begun: The labels of earlier studies of which the study has trials already; they are not
            read again.

    Raises:
        ConfigError: A configuration is outside the space, an earlier study cannot be read, the
            sampler is a grid, or the budget is too small; the error has all messages.
    """
    study = definition.config.study
    enqueue_value = value_at(definition.config, "study.enqueue")
    warm_start_value = value_at(definition.config, "study.warm_start")
    if not enqueue_value and not warm_start_value:
        return WarmStarts()
    strategy = Strategy(definition)
    enqueued = _place_enqueued(definition, enqueue_value)
    starts = list(enqueued.starts)
    room = strategy.trials - len(starts)  # for trials of earlier studies
    if definition.baseline is not None:
        room -= 1
    earlier_studies = read_named(warm_start_value or [], begun)
    errors = list(enqueued.errors)
    if strategy.points is not None:
        errors.append(
            "sampler=grid: tries each configuration of the space once, so study.enqueue and "
            "study.warm_start add nothing; remove them, or choose another sampler"
        )
    if room < 0:
        errors.append(
            f"study.enqueue: {-room} of {len(starts)} configurations do not fit into "
            f"study.trials={study.trials}; raise study.trials, or remove some"
        )
    errors += earlier_studies.errors
    refuse(errors)
    chosen_trials = choose_trials(
        definition, earlier_studies.studies, min(study.warm_start_top, room)
    )
    notes = [*enqueued.notes, *earlier_studies.notes]
    for earlier in earlier_studies.studies:
        notes.append(_describe_taken(definition, earlier, chosen_trials))
    for trial in chosen_trials:
        label = trial.earlier.label
        starts.append(WarmStart(trial.placed.point, f"{label}, trial {trial.number}", label))
    return WarmStarts(starts, earlier_studies.labels, notes)


def _place_enqueued(definition: "Definition", configurations: Any) -> EnqueuedPoints:
    """Places the configurations of `study.enqueue` in the space.

    Args:
        configurations: The value of the key.
    """
    is_list = isinstance(configurations, list)
    if not is_list or not all(isinstance(item, Mapping) for item in configurations):
        error = (
            "study.enqueue must be a list of configurations, such as [{model: cnn, …}, …]; "
            f"got {format_scalar(configurations)}"
        )
        return EnqueuedPoints(errors=[error])
    starts = []
    errors = []
    notes = []
    for index, parameters in enumerate(configurations):
        source = f"study.enqueue[{index}]"
        if definition.suggests:  # only its objective knows which values it suggests
            placed = PlacedPoint(Point(params={**parameters}))
        else:
            placed = place_point(definition, parameters)
        problems = [*placed.errors, *placed.unknown.values()]
        if placed.breaks_relation:
            breach = problems.pop(0)  # its only error
            notes.append(f"{source}: is left out, since it {breach}")
        else:
            starts.append(WarmStart(placed.point, source))
        errors += [f"{source}: {problem}" for problem in problems]
    return EnqueuedPoints(starts, errors, notes)


def store_warm_starts(
    stored: StoredStudy, definition: "Definition", starts: WarmStarts, trials: int
) -> None:
    """Stores what proposals are checked against, and queues the configurations to try first."""
    store_space(stored, definition)
    if definition.baseline is not None:
        missing = missing_baseline(stored)
        if missing is not None:
            log.warning("%s", missing)
    left_out = enqueue(stored, starts, trials, baseline=definition.baseline)
    if left_out:
        log.warning(
            "%d configurations to begin with are left out: all %d trials have begun; "
            "raise study.trials",
            left_out,
            trials,
        )


def read_sources(stored: StoredStudy) -> list[str]:
    """Returns the labels of the earlier studies of which a study has trials."""
    return list(stored.optuna.user_attrs.get(WARM_START, []))


def enqueue(stored: StoredStudy, starts: WarmStarts, trials: int, *, baseline: Point | None) -> int:
    """Queues each configuration that no trial of the study has tried, in one transaction.

    The baseline is queued first, because it is trial 0. An earlier study is left out if the study
    has trials from it already.

    Args:
        trials: The budget.

    Returns:
        How many configurations found no free slot.
    """
    if not starts.points and not starts.sources:
        return 0
    ledger = stored.ledger

    def queue(connection: Connection) -> int:
        existing_trials = stored.lock_trials(connection)
        (stored_sources,) = sql.study_attrs(connection, ledger.study_id, WARM_START)
        begun_sources = stored_sources or []
        new_starts = [start for start in starts.points if start.earlier not in begun_sources]
        waiting = _find_untried(new_starts, existing_trials, baseline)
        slots: Sequence[int] = ()
        if waiting:
            slots = ledger.never_claimed(connection, trials)
        for slot, queued in zip(slots, waiting, strict=False):
            ledger.queue(connection, slot, queued.point, queued.attributes)
        all_sources = [*dict.fromkeys([*begun_sources, *starts.sources])]
        if all_sources:
            sql.set_study_attr(connection, ledger.study_id, WARM_START, all_sources)
        return max(0, len(waiting) - len(slots))

    return ledger.storage.execute(queue)


def _find_untried(
    starts: Sequence[WarmStart], existing_trials: Sequence[FrozenTrial], baseline: Point | None
) -> list[QueuedTrial]:
    """Returns the trials to queue: each configuration that no trial has, once.

    If no trial has begun, that of the baseline comes first.
    """
    if not starts:
        return []
    waiting = []
    tried = [trial.system_attrs.get(sql.FIXED_PARAMS, trial.params) for trial in existing_trials]
    if baseline is not None:
        if not existing_trials:
            # It waits without hyperparameters; the worker that claims it sets them.
            waiting.append(QueuedTrial(Point(), BASELINE_ATTRIBUTES))
        tried.append(baseline.params)
    for start in starts:
        if start.point.params not in tried:
            tried.append(start.point.params)
            waiting.append(QueuedTrial(start.point, {ENQUEUED: start.source}))
    return waiting


# Proposals


def store_space(stored: StoredStudy, definition: "Definition") -> None:
    """Stores what proposals are checked against; None for sampler=grid, or if trials suggest.

    It is the tree of the space, the options of its groups, and the default values of its
    hyperparameters, which another process can read without the modules of the study.
    """
    if definition.suggests or Strategy(definition).points is not None:
        stored.optuna.set_user_attr(SPACE, None)
        return
    composer = definition.composer
    options = defaultdict[str, list[str]](list)
    for group in definition.space.groups():
        options[group.config_group] += group.options
    stored_space = {
        "tree": value_at(definition.config, "space") or {},
        "options": options,
        "choices": {group: composer.choices.get(group) for group in options},
        "starts": _read_default_values(definition),
        "baseline": definition.baseline is not None,
        "share": definition.config.study.proposal_share,
    }
    stored.optuna.set_user_attr(SPACE, stored_space)


def _read_default_values(definition: "Definition") -> dict[str, Any]:
    """Returns the default value of each hyperparameter of the space, by name."""
    composer = definition.composer
    default_values: dict[str, Any] = {}
    for branch in definition.space.branches():
        # A default may depend on the options, so each branch has its own config.
        point = definition.space.make_placeholder({**composer.choices, **branch.choices})
        config = composer.compose(point.choices)
        for node in branch.nodes:
            default_values[node.name] = value_at(config, node.key)
    return default_values
