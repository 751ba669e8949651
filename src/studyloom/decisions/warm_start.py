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
from studyloom.decisions.placement import PlacedConfiguration, place_configuration
from studyloom.decisions.strategy import Strategy
from studyloom.errors import raise_if_any
from studyloom.space.tree import Configuration, Params
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
        configuration: Its hyperparameters.
        origin: Where it is from, for people: "study.enqueue[0]", "runs/old, trial 7".
        label: The name, for people, of the earlier study that tried it; None if the user gave it.
    """

    configuration: Configuration
    origin: str
    label: str | None = None


@dataclass(frozen=True)
class QueuedTrial:
    """A trial that waits with fixed hyperparameters.

    Attributes:
        configuration: Its hyperparameters.
        attributes: Its attributes, such as where its configuration is from.
    """

    configuration: Configuration
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class EnqueuedConfigurations:
    """The configurations that `study.enqueue` lists.

    Attributes:
        starts: The configurations that are tried.
        errors: A message for each problem with a configuration; with any, the study does not begin.
        notes: A line for each configuration that is left out without an error.
    """

    starts: Sequence[WarmStart] = ()
    errors: Sequence[str] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class PlacedTrial:
    """A trial of an earlier study, placed in the space of this one."""

    earlier: EarlierStudy
    number: int
    placed: PlacedConfiguration


def choose_trials(
    definition: "Definition", studies: Sequence[EarlierStudy], count: int
) -> list[PlacedTrial]:
    """Chooses the best trials of earlier studies whose configurations fit this study's space.

    The studies take turns: the best trial of each, then the second best of each, and so on. The
    values of different studies are not compared, since their scales may differ.

    Args:
        definition: The definition of this study.
        studies: The earlier studies.
        count: The most trials to choose.

    Returns:
        At most `count` trials in the order in which they are tried, none with the configuration
        of another or of the baseline.
    """
    chosen_trials: list[PlacedTrial] = []
    chosen_params: list[Params] = []
    if definition.baseline is not None:
        chosen_params.append(definition.baseline.params)
    # An iterator over the remaining trials of each study, in the order of their turns. A study that
    # has no more trials leaves the queue.
    queue = deque(_iterate_fitting_trials(definition, earlier) for earlier in studies)
    while queue and len(chosen_trials) < count:
        remaining_trials = queue.popleft()
        trial = _take_first_new(remaining_trials, chosen_params)
        if trial is not None:
            chosen_trials.append(trial)
            chosen_params.append(trial.placed.configuration.params)
            queue.append(remaining_trials)  # the study's next turn comes after all others
    return chosen_trials


def _take_first_new(
    trials: Iterator[PlacedTrial], chosen_params: Sequence[Params]
) -> PlacedTrial | None:
    """Takes trials from an iterator until one has a configuration that is not chosen yet.

    Args:
        trials: The trials.
        chosen_params: The hyperparameters of each configuration that is chosen already.

    Returns:
        That trial; None if the iterator has ended.
    """
    for trial in trials:
        if trial.placed.configuration.params not in chosen_params:
            return trial
    return None


def _iterate_fitting_trials(
    definition: "Definition", earlier: EarlierStudy
) -> Iterator[PlacedTrial]:
    """Yields the trials of an earlier study that fit into this study's space, the best first."""
    for trial in earlier.ranked_trials[:MOST_PLACED]:
        try:
            placed = place_configuration(definition, trial.params)
        except Exception:  # the study is untrusted: it may have names that no key can have
            continue
        # A hyperparameter that the earlier study did not search gets its default value here. If all
        # have theirs, nothing of the earlier study would be tried.
        has_earlier_value = len(placed.defaulted) < len(placed.configuration.params)
        if has_earlier_value and not placed.errors:
            yield PlacedTrial(earlier, trial.number, placed)


def _describe_taken(
    definition: "Definition", earlier: EarlierStudy, chosen_trials: Sequence[PlacedTrial]
) -> str:
    """Says which trials of an earlier study are tried first, and how they differ in this study.

    For example "runs/old: begins with its trials 7, 12; optimizer.lr has its default value".

    Args:
        definition: The definition of this study.
        earlier: The earlier study.
        chosen_trials: The trials of all earlier studies that are tried.
    """
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
    distinct_differences = dict.fromkeys(differences)  # in their order, without repetitions
    parts = [f"{earlier.label}: begins with its {noun} {numbers}", *distinct_differences]
    return "; ".join(parts)


def _describe_none_taken(definition: "Definition", earlier: EarlierStudy) -> str:
    """Says that no trial of an earlier study is tried, and why its best one does not fit."""
    note = f"{earlier.label}: none of its trials is taken"
    if not earlier.ranked_trials:
        return note
    best_trial = earlier.ranked_trials[0]
    errors = place_configuration(definition, best_trial.params).errors
    if not errors:
        return note
    return f"{note}: {'; '.join(errors)}"


@dataclass(frozen=True)
class WarmStarts:
    """All configurations to begin with.

    Attributes:
        configurations: All of them, in the order in which they are tried.
        labels: The names, for people, of the earlier studies that `study.warm_start` names;
            without passwords.
        notes: Lines about what is taken, for people.
    """

    configurations: Sequence[WarmStart] = ()
    labels: Sequence[str] = ()
    notes: Sequence[str] = ()


def find_warm_starts(definition: "Definition", used_labels: Sequence[str] = ()) -> WarmStarts:
    """Finds the configurations that `study.enqueue` and `study.warm_start` name.

    Args:
        definition: The definition of the study.
        used_labels: The labels (names for people) of earlier studies of which the study has trials
            already; they are not read again.

    Raises:
        ConfigError: A configuration is outside the space, an earlier study cannot be read, the
            sampler is a grid, or the budget is too small; the error has all messages.
    """
    study = definition.config.study
    enqueue_value = value_at(definition.config, "study.enqueue")
    warm_start_value = value_at(definition.config, "study.warm_start")
    if not enqueue_value and not warm_start_value:
        return WarmStarts()
    enqueued = _place_enqueued(definition, enqueue_value)
    earlier_studies = read_named(warm_start_value or [], used_labels)

    strategy = Strategy(definition)
    free_trials = strategy.trials - len(enqueued.starts)  # of the budget, for earlier studies
    baseline_is_enqueued = definition.has_optuna_objective  # or it has none
    if definition.baseline is not None and not baseline_is_enqueued:
        free_trials -= 1
    errors = list(enqueued.errors)
    is_grid = strategy.configurations is not None  # only a grid has a list of configurations
    if is_grid:
        errors.append(
            "sampler=grid: tries each configuration of the space once, so study.enqueue and "
            "study.warm_start add nothing; remove them, or choose another sampler"
        )
    if free_trials < 0:
        errors.append(
            f"study.enqueue: {-free_trials} of {len(enqueued.starts)} configurations do not fit "
            f"into study.trials={study.trials}; raise study.trials, or remove some"
        )
    errors += earlier_studies.errors
    raise_if_any(errors)

    most_trials = min(study.warm_start_top, free_trials)
    chosen_trials = choose_trials(definition, earlier_studies.studies, most_trials)
    starts = list(enqueued.starts)
    for trial in chosen_trials:
        label = trial.earlier.label
        start = WarmStart(
            trial.placed.configuration,
            origin=f"{label}, trial {trial.number}",
            label=label,
        )
        starts.append(start)
    notes = [*enqueued.notes, *earlier_studies.notes]
    for earlier in earlier_studies.studies:
        notes.append(_describe_taken(definition, earlier, chosen_trials))
    return WarmStarts(starts, earlier_studies.labels, notes)


def _place_enqueued(definition: "Definition", configurations: Any) -> EnqueuedConfigurations:
    """Places the configurations of `study.enqueue` in the space.

    A configuration that breaks a relation between hyperparameters is left out with a note. Any
    other problem is an error.

    Args:
        definition: The definition of the study.
        configurations: The value of the key; any value that a user may have written.
    """
    is_list = isinstance(configurations, list)
    if not is_list or not all(isinstance(item, Mapping) for item in configurations):
        error = (
            "study.enqueue must be a list of configurations, such as [{model: cnn, …}, …]; "
            f"got {format_scalar(configurations)}"
        )
        return EnqueuedConfigurations(errors=[error])
    starts = []
    errors = []
    notes = []
    for index, parameters in enumerate(configurations):
        origin = f"study.enqueue[{index}]"
        if definition.has_optuna_objective:
            # The objective calls `trial.suggest_…` itself: without a space, nothing is checked.
            placed = PlacedConfiguration(Configuration(params={**parameters}))
        else:
            placed = place_configuration(definition, parameters)
        messages_on_unknown_names = placed.unknown.values()
        if placed.breaks_relation:
            breach = placed.errors[0]  # there is no other error then
            notes.append(f"{origin}: is left out, since it {breach}")
            problems = [*messages_on_unknown_names]
        else:
            starts.append(WarmStart(placed.configuration, origin))
            problems = [*placed.errors, *messages_on_unknown_names]
        errors += [f"{origin}: {problem}" for problem in problems]
    return EnqueuedConfigurations(starts, errors, notes)


def store_warm_starts(
    stored: StoredStudy, definition: "Definition", starts: WarmStarts, budget: int
) -> None:
    """Stores the space for later proposals, and queues the configurations to try first.

    Args:
        stored: The study in its database.
        definition: Its definition.
        starts: The configurations to try first.
        budget: The number of trials of the study.
    """
    store_space(stored, definition)
    if definition.baseline is not None:
        baseline_warning = missing_baseline(stored)
        if baseline_warning is not None:
            log.warning("%s", baseline_warning)
    left_out_count = enqueue(stored, starts, budget, baseline=definition.baseline)
    if left_out_count > 0:
        log.warning(
            "%d configurations to begin with are left out: all %d trials have begun; "
            "raise study.trials",
            left_out_count,
            budget,
        )


def read_used_labels(stored: StoredStudy) -> list[str]:
    """Returns the labels (names for people) of the earlier studies of which a study has trials."""
    return list(stored.optuna.user_attrs.get(WARM_START, []))


def enqueue(
    stored: StoredStudy, starts: WarmStarts, budget: int, *, baseline: Configuration | None
) -> int:
    """Queues each configuration that no trial of the study has, in one transaction.

    Trials of an earlier study are queued only once: the labels of those that were used are stored
    with the study, and a later command leaves these studies out. A label is the name of an earlier
    study for people, such as "runs/old".

    Args:
        stored: The study in its database.
        starts: The configurations to try first.
        budget: The number of trials of the study. Each has a slot: a row in the table of the
            ledger, which a worker claims to run the trial.
        baseline: The default configuration, which is queued first unless a trial is the baseline;
            None without one.

    Returns:
        How many configurations are left out, since workers have begun all trials of the budget.
    """
    if not starts.configurations and not starts.labels:
        return 0
    ledger = stored.ledger

    def queue_all(connection: Connection) -> int:
        """Queues the trials in one transaction; returns for how many there is no free slot."""
        existing_trials = stored.lock_trials(connection)
        (stored_labels,) = sql.study_attrs(connection, ledger.study_id, WARM_START)
        used_labels = stored_labels or []
        # Those of the user have no label, and are never left out here.
        new_starts = [start for start in starts.configurations if start.label not in used_labels]
        new_trials = _make_queued_trials(new_starts, existing_trials, baseline)
        free_slots: Sequence[int] = ()
        if new_trials:
            free_slots = ledger.never_claimed(connection, budget)
        # There may be fewer slots than trials.
        for slot, trial in zip(free_slots, new_trials, strict=False):
            ledger.queue(connection, slot, trial.configuration, trial.attributes)
        all_labels = list(dict.fromkeys([*used_labels, *starts.labels]))
        if all_labels:
            sql.set_study_attr(connection, ledger.study_id, WARM_START, all_labels)
        return max(0, len(new_trials) - len(free_slots))

    return ledger.storage.execute(queue_all)


def _make_queued_trials(
    starts: Sequence[WarmStart],
    existing_trials: Sequence[FrozenTrial],
    baseline: Configuration | None,
) -> list[QueuedTrial]:
    """Returns a trial to queue for each configuration that no trial has.

    In a new study the baseline comes before them, since trial 0 runs it. If there is nothing else
    to queue, it is not queued either: the worker that claims the first slot runs it anyway.

    Args:
        starts: The configurations to try first.
        existing_trials: The trials of the study.
        baseline: The default configuration; None without one.
    """
    if not starts:
        return []
    tried_params = []
    has_baseline = False
    for trial in existing_trials:
        # A trial that waits has no params yet; those that it will get are in an attribute.
        params = trial.system_attrs.get(sql.FIXED_PARAMS, trial.params)
        if BASELINE in trial.user_attrs:
            has_baseline = True
            if baseline is not None and not params:  # its worker is about to set them
                params = baseline.params
        tried_params.append(params)
    queued_trials = []
    if baseline is not None and not has_baseline and baseline.params not in tried_params:
        tried_params.append(baseline.params)
        queued_trials.append(QueuedTrial(baseline, BASELINE_ATTRIBUTES))
    for start in starts:
        if start.configuration.params not in tried_params:
            tried_params.append(start.configuration.params)
            queued_trials.append(QueuedTrial(start.configuration, {ENQUEUED: start.origin}))
    return queued_trials


# Proposals


def store_space(stored: StoredStudy, definition: "Definition") -> None:
    """Stores the search space in a form that another process reads without the study's modules.

    Configurations that people and programs propose are checked against it: the tree of the space,
    the options of its groups, and the default values of its hyperparameters. A study that takes no
    proposals stores None: a grid tries each configuration once, and an Optuna objective, which
    suggests its own values, has no space.
    """
    is_grid = Strategy(definition).configurations is not None  # only a grid has a list of them
    if definition.has_optuna_objective or is_grid:
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
        # A default value may depend on the options, so each branch has a config with its options.
        configuration = definition.space.make_placeholder({**composer.choices, **branch.choices})
        config = composer.compose(configuration.choices)
        for node in branch.nodes:
            default_values[node.name] = value_at(config, node.key)
    return default_values
