"""Compares the ledger with Optuna's tables, and says for each difference how it is mended."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from studyloom.storage.heads import TrialHead


class Slot(NamedTuple):
    """A row of the ledger.

    Attributes:
        leased: Whether a worker holds it and its lease has not ended. What is wrong there meets
            the worker itself, with its next report.
    """

    number: int
    state: str
    trial_id: int | None
    leased: bool


class Entry(NamedTuple):
    """What a row of the ledger is to say.

    Attributes:
        state: free or done.
    """

    slot: int
    state: str
    trial_id: int | None


@dataclass(frozen=True)
class Difference:
    """One kind of difference between ledger and trials, and what mends it.

    Attributes:
        words: What was found, where, and what is done about it; one line.
        entries: Rows of the ledger to be written.
        aside: Ids of the trials to be taken out of their slots.
        numbers: Ids of trials, and their new numbers.
        safe: Whether a command mends it unasked.
    """

    words: str
    entries: Sequence[Entry] = ()
    aside: Sequence[int] = ()
    numbers: Sequence[tuple[int, int]] = ()
    safe: bool = True


# What differs at a slot; and after the semicolon, how it is mended.
KINDS = {
    "missing": "missing in the ledger; made again with the trial",
    "gone": "the trial is gone; open for a new one",
    "unlinked": "the ledger names another trial, or none; linked to the trial of the slot",
    "unended": "done, but the trial has not ended; open, so that the trial goes on",
    "ended": "open, but the trial has ended; done",
}


def compare(slots: Iterable[Slot], trials: Sequence[TrialHead]) -> list[Difference]:
    """Compares the two records of a study, of which nobody writes one in the meantime.

    Args:
        slots: The rows of the ledger.
        trials: All trials of the study, those of other programs included.

    Returns:
        The differences, one for each kind. Once they are mended, the records agree. A slot that
        neither has a row nor a trial is none: a larger budget makes it.
    """
    rows = {row.number: row for row in slots}
    filling = defaultdict[int, list[TrialHead]](list)
    for trial in trials:
        if trial.slot is not None:
            filling[trial.slot].append(trial)
    found = defaultdict[str, list[Entry]](list)
    twice: list[Difference] = []
    for slot in sorted({*rows, *filling}):
        row, own = rows.get(slot), filling[slot]
        keeper, clear = _keeper(row, own)
        if len(own) > 1 and keeper is not None:
            twice.append(_twice(slot, own, keeper, clear=clear))
        if clear and (kind := _judge(row, keeper)) is not None:
            found[kind].append(_entry(slot, keeper))
    mended = [
        Difference(f"{_named('slot', [entry.slot for entry in found[kind]])}: {words}", found[kind])
        for kind, words in KINDS.items()
        if found[kind]
    ]
    return [*mended, *twice, *_renumbered(trials)]


def _keeper(row: Slot | None, own: Sequence[TrialHead]) -> tuple[TrialHead | None, bool]:
    """Returns which of its trials keeps a slot, and whether the two records say so."""
    named = [trial for trial in own if row is not None and trial.trial_id == row.trial_id]
    ordered = sorted(own, key=lambda trial: (not trial.state.is_finished(), trial.number))
    return next(iter(named or ordered), None), len(named or own) < 2


def _judge(row: Slot | None, keeper: TrialHead | None) -> str | None:
    """Names how a row of the ledger differs from the trial of its slot; None if it does not."""
    if row is None:
        return "missing"
    if row.leased:
        return None
    if keeper is None:
        return None if row.trial_id is None and row.state in ("free", "held") else "gone"
    ended = keeper.state.is_finished()
    if row.trial_id != keeper.trial_id or row.state not in ("free", "held", "done"):
        return "unlinked"
    if ended == (row.state == "done"):
        return None
    return "ended" if ended else "unended"


def _entry(slot: int, keeper: TrialHead | None) -> Entry:
    if keeper is None:
        return Entry(slot, "free", None)
    return Entry(slot, "done" if keeper.state.is_finished() else "free", keeper.trial_id)


def _twice(slot: int, own: Sequence[TrialHead], keeper: TrialHead, *, clear: bool) -> Difference:
    """Sets all trials of a slot aside but one; unasked only if the ledger says which one."""
    others = [trial for trial in own if trial is not keeper]
    aside = f"{_named('trial', [trial.number for trial in others])} set aside, kept but not counted"
    entries = () if clear else (_entry(slot, keeper),)
    numbers = _listed([trial.number for trial in own])
    words = f"slot {slot} has the trials {numbers}; trial {keeper.number} keeps it, {aside}"
    return Difference(words, entries, [trial.trial_id for trial in others], safe=clear)


def _renumbered(trials: Sequence[TrialHead]) -> Iterator[Difference]:
    """Gives trials that share a number with another one numbers of their own.

    Optuna numbers a trial by how many there are, also where some were deleted. A trial that a
    worker may be at work on keeps its number, else one that fills a slot.
    """
    order = sorted(trials, key=lambda t: (t.slot is None, t.state.is_finished(), t.trial_id))
    known: set[int] = set()
    again: list[TrialHead] = []
    for trial in order:
        if trial.number in known:
            again.append(trial)
        known.add(trial.number)
    if again:
        first = max(known) + 1
        numbers = [(trial.trial_id, number) for number, trial in enumerate(again, first)]
        words = f"{_named('trial', [trial.number for trial in again])}: numbered twice"
        yield Difference(f"{words}; now {_listed([n for _, n in numbers])}", numbers=numbers)


def _named(noun: str, numbers: Sequence[int]) -> str:
    return f"{noun}{'' if len(numbers) == 1 else 's'} {_listed(numbers)}"


def _listed(numbers: Sequence[int]) -> str:
    """Formats numbers in words, three and more neighbours as a range: `1, 4–7 and 9`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    parts = [
        part
        for run in runs
        for part in ([f"{run[0]}–{run[-1]}"] if len(run) > 2 else map(str, run))
    ]
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))
