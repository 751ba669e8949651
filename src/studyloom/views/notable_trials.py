"""The notable trials of a study with their values: winner, best of the search, baseline."""

from dataclasses import dataclass

from optuna.trial import FrozenTrial

from studyloom.storage.trial_record import TrialRecord
from studyloom.views import words
from studyloom.views.snapshot import Snapshot
from studyloom.winner.result import Candidate, Result, Summary


@dataclass(frozen=True)
class NotableTrial:
    """A notable trial of a study.

    Args:
        roles: `winner`, `best` or `baseline`, or several of them.
        candidate: the trial, with its values on new seeds if it was re-evaluated.
        search_error: the standard error of its value in the search; None if it is unknown.
        test: its values on the test set; None if it was not tested.
    """

    roles: tuple[str, ...]
    candidate: Candidate
    search_error: float | None = None
    test: Summary | None = None

    @property
    def name(self) -> str:
        """Its roles in one text, such as "winner, best"."""
        return ", ".join(self.roles)


def list_notable_trials(snapshot: Snapshot, result: Result | None) -> list[NotableTrial]:
    """Returns the winner, the best trial and the baseline; a trial with several roles once.

    Args:
        result: the result of the study; None before there is one.
    """
    candidates_by_role = {}
    if result is not None:
        candidates_by_role["winner"] = result.winner
    stored_trials = {}  # by number
    for role, trial in (("best", snapshot.best), ("baseline", snapshot.baseline)):
        if trial is not None:
            candidates_by_role[role] = _find_candidate(trial, snapshot, result)
            stored_trials[trial.number] = trial
    notable_trials: dict[int, NotableTrial] = {}  # by number
    for role, candidate in candidates_by_role.items():
        number = candidate.trial
        if number in notable_trials:
            roles = (*notable_trials[number].roles, role)
        else:
            roles = (role,)
        search_error = None
        if number in stored_trials:
            search_error = TrialRecord(stored_trials[number]).standard_error
        test = _find_test(result, roles)
        notable_trials[number] = NotableTrial(roles, candidate, search_error, test)
    return [*notable_trials.values()]


def _find_candidate(trial: FrozenTrial, snapshot: Snapshot, result: Result | None) -> Candidate:
    """Returns the candidate of a trial, with its re-evaluation; without one, only its values."""
    if result is not None:
        for candidate in result.candidates:
            if candidate.trial == trial.number:
                return candidate
    costs = words.map_costs(snapshot, trial)
    return Candidate(trial.number, trial.params, trial.values[0], costs)


def _find_test(result: Result | None, roles: tuple[str, ...]) -> Summary | None:
    """Returns the values of a trial on the test set; None if it was not tested."""
    if result is None or result.test is None:
        return None
    if "winner" in roles:
        return result.test.winner
    if "baseline" in roles:
        return result.test.baseline
    return None
