"""A race as it is stored: the trials of the re-evaluation, and how they decided it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from studyloom.storage.attributes import SLOT
from studyloom.study.failures import outcome, reason_of
from studyloom.study.race import Leaving, Race, Training, run_race
from studyloom.text import format_value, one_line


def find_race(
    trials: Iterable[FrozenTrial], entrants: Sequence[int], budget: int, sign: int
) -> Race:
    """Finds how far a race has come.

    Slot n has the n-th training of the race. If another program has deleted a trial and its
    training anew gave another value, a slot may have a training that is no longer called for. The
    one that the slot should have counts as failed then, so that the race ends nevertheless.

    Args:
        trials: of the re-evaluation.
        entrants: as for `run_race`.
        budget: as for `run_race`.
        sign: as for `run_race`.
    """
    results: dict[Training, float | None] = {}
    ended = {}
    for trial in trials:
        if SLOT in trial.user_attrs and trial.state.is_finished():
            ended[trial.user_attrs[SLOT]] = trial
            if {"candidate", "seed"} <= {*trial.params}:
                complete = trial.state == TrialState.COMPLETE
                training = trial.params["candidate"], trial.params["seed"]
                results[training] = trial.values[0] if complete else None
    while True:
        race = run_race(entrants, results, budget, sign)
        lost = [
            training
            for slot, training in enumerate(race.trainings)
            if slot in ended and training in race.open
        ]
        if not lost:
            return race
        results |= dict.fromkeys(lost)


def describe_race(race: Race, trials: Iterable[FrozenTrial], budget: int) -> dict[str, Any]:
    """Returns the entry `race` of winner.json.

    Args:
        race: that has ended.
        trials: of the re-evaluation.
        budget: how many trainings it had at most.
    """
    causes = {
        trial.params.get("candidate"): one_line(reason_of(trial) or "failed")
        for trial in trials
        if outcome(trial) == "failed"
    }
    seeds = max((seed for _, seed in race.trainings), default=-1) + 1
    return {
        "entrants": len({candidate for candidate, _ in race.trainings}),
        "trainings": len(race.trainings),
        "budget": budget,
        "seeds": seeds,
        "last": list(race.running),
        "left": [_describe(leaving, causes) for leaving in race.left],
    }


def _describe(leaving: Leaving, causes: Mapping[Any, str]) -> dict[str, Any]:
    """Describes why one has left, as winner.json has it."""
    reasons: dict[str, Callable[[], str]] = {
        "failed": lambda: (
            f"a training failed: {causes.get(leaving.candidate, 'its trial is gone')}"
        ),
        "behind": lambda: "only the better half went on",
        "worse": lambda: (
            f"worse than trial {leaving.leader} beyond doubt (p = {format_value(leaving.p or 0.0)})"
        ),
    }
    return {
        "trial": leaving.candidate,
        "seeds": leaving.seeds,
        "cause": leaving.cause,
        "leader": leaving.leader,
        "p": leaving.p,
        "reason": reasons[leaving.cause](),
    }
