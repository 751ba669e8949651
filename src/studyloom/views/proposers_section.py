"""The section of a report that compares proposed trials with those of the sampler."""

from collections.abc import Iterable, Iterator, Mapping

from optuna.trial import FrozenTrial

from studyloom.storage.stored_study import StoredStudy
from studyloom.storage.trial_record import TrialRecord
from studyloom.views import page, words
from studyloom.views.charts import PageTable
from studyloom.winner.result import Result

SAMPLER = "sampler"  # the name of its row in the table of proposers


def render_proposers(stored: StoredStudy, result: Result | None) -> Iterator[page.Section]:
    """Compares the trials of each proposer, if any, with those of the sampler."""
    numbers_by_proposer = _group_by_proposer(stored.trials())
    if len(numbers_by_proposer) == 1:
        return
    search_values = {trial.number: trial.values[0] for trial in stored.ranked()}
    means = {}
    if result is not None:
        for candidate in result.candidates:
            if candidate.mean is not None:
                means[candidate.trial] = candidate.mean
    sampler_best = _find_best_value(search_values, numbers_by_proposer[SAMPLER], stored.sign)
    rows = []
    for proposer, numbers in numbers_by_proposer.items():
        best = _find_best_value(search_values, numbers, stored.sign)
        gain = None
        if best is not None and sampler_best is not None:
            gain = stored.sign * (best - sampler_best)
        best_mean = _find_best_value(means, numbers, stored.sign)
        row = (
            proposer,
            len(numbers),
            words.format_number(best),
            words.format_number(gain, "+"),
            words.format_number(best_mean),
        )
        rows.append(row)
    head = ("", "trials", "best, search", "better than the sampler's by", "best re-evaluation mean")
    yield page.make_section("proposers", [PageTable(head, rows, text_columns=(0,))])


def _group_by_proposer(trials: Iterable[FrozenTrial]) -> dict[str, list[int]]:
    """Returns the numbers of the trials of the sampler, and of each program that proposed some.

    Trials whose configuration the user gave, such as the baseline, are left out.
    """
    numbers: dict[str, list[int]] = {SAMPLER: []}
    for trial in trials:
        record = TrialRecord(trial)
        proposer = record.proposer
        if proposer:
            numbers.setdefault(f"proposed by {proposer}", []).append(trial.number)
        elif not record.is_given:
            numbers[SAMPLER].append(trial.number)
    return numbers


def _find_best_value(
    values: Mapping[int, float], numbers: Iterable[int], sign: int
) -> float | None:
    """Returns the best value of some trials; None if none has a value.

    Args:
        values: the values of trials by number.
        numbers: the numbers of the trials to compare.
        sign: 1 if more is better, else -1.
    """
    compared = [values[number] for number in numbers if number in values]
    return max(compared, key=lambda value: sign * value, default=None)
