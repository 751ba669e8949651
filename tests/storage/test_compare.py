"""The two records of a study, compared: every disagreement is named, and mended once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState

from studyloom.storage.compare import Slot, compare
from studyloom.storage.heads import TrialHead

RUNS, ENDED = TrialState.RUNNING, TrialState.COMPLETE


def trial(number, slot, state=ENDED, trial_id=None):
    return TrialHead(100 + number if trial_id is None else trial_id, number, state, slot)


def words(slots, trials):
    return [difference.words for difference in compare(slots, trials)]


def test_records_that_agree_differ_in_nothing():
    slots = [
        Slot(0, "done", 100, False),
        Slot(1, "held", 101, True),
        Slot(2, "held", 102, False),  # its lease has ended: the next worker goes on
        Slot(3, "free", 103, False),
        Slot(4, "held", None, True),
        Slot(5, "free", None, False),
    ]
    trials = [trial(0, 0), *(trial(n, n, RUNS) for n in (1, 2, 3)), trial(4, None)]
    assert compare(slots, trials) == []
    assert compare([], []) == []


DISAGREEMENTS = {
    "missing": ([], [trial(0, 0)], "slot 0: missing in the ledger", ("done", 100)),
    "missing, and its trial runs": ([], [trial(0, 0, RUNS)], "slot 0: missing", ("free", 100)),
    "done, the trial is gone": ([Slot(0, "done", 100, False)], [], "trial is gone", ("free", None)),
    "held, the trial is gone": ([Slot(0, "held", 100, False)], [], "trial is gone", ("free", None)),
    "done without a trial": ([Slot(0, "done", None, False)], [], "trial is gone", ("free", None)),
    "a trial of another program has its id": (
        [Slot(0, "held", 100, False)],
        [trial(0, None, RUNS)],
        "trial is gone",
        ("free", None),
    ),
    "not linked": ([Slot(0, "free", None, False)], [trial(0, 0)], "names another", ("done", 100)),
    "linked elsewhere": ([Slot(0, "done", 9, False)], [trial(0, 0)], "another", ("done", 100)),
    "no state that we know": ([Slot(0, "x", 100, False)], [trial(0, 0)], "another", ("done", 100)),
    "done, the trial runs": (
        [Slot(0, "done", 100, False)],
        [trial(0, 0, RUNS)],
        "done, but the trial has not ended",
        ("free", 100),
    ),
    "free, the trial has ended": (
        [Slot(0, "free", 100, False)],
        [trial(0, 0)],
        "open, but the trial has ended",
        ("done", 100),
    ),
    "held in vain": ([Slot(0, "held", 100, False)], [trial(0, 0)], "open, but", ("done", 100)),
}


@pytest.mark.parametrize("name", DISAGREEMENTS)
def test_a_slot_that_differs_is_named_and_gets_what_its_trial_says(name):
    slots, trials, said, (state, trial_id) = DISAGREEMENTS[name]
    (difference,) = compare(slots, trials)
    assert said in difference.words
    assert difference.safe
    assert [tuple(entry) for entry in difference.entries] == [(0, state, trial_id)]


def test_slots_that_differ_alike_are_one_line():
    slots = [Slot(n, "done", 100 + n, False) for n in range(9)]
    assert words(slots, [trial(4, 4)]) == [
        "slots 0–3 and 5–8: the trial is gone; open for a new one"
    ]
    assert words(slots[:3:2], []) == ["slots 0 and 2: the trial is gone; open for a new one"]


def test_what_a_worker_is_at_work_on_is_left_to_it():
    assert compare([Slot(0, "held", 100, True)], []) == []
    assert compare([Slot(0, "held", 100, True)], [trial(0, 0)]) == []


def test_of_two_trials_of_a_slot_the_one_that_the_ledger_names_keeps_it():
    (difference,) = compare([Slot(0, "done", 100, False)], [trial(0, 0), trial(1, 0)])
    assert difference.words == (
        "slot 0 has the trials 0 and 1; trial 0 keeps it, trial 1 set aside, kept but not counted"
    )
    assert (difference.aside, difference.entries, difference.safe) == ([101], (), True)


def test_of_two_trials_of_a_slot_that_the_ledger_does_not_name_a_person_decides():
    (difference,) = compare([Slot(0, "done", 9, False)], [trial(0, 0, RUNS), trial(1, 0)])
    assert not difference.safe
    assert (difference.aside, [tuple(e) for e in difference.entries]) == ([100], [(0, "done", 101)])


def test_a_number_that_optuna_gave_out_twice_stays_with_the_trial_of_a_slot():
    slots = [Slot(0, "done", 100, False), Slot(1, "done", 102, False)]
    trials = [trial(0, 0), trial(2, 1), TrialHead(103, 2, ENDED, None)]
    (difference,) = compare(slots, trials)
    assert difference.words == "trial 2: numbered twice; now 3"
    assert difference.numbers == [(103, 3)]


SLOTS = st.lists(
    st.builds(
        Slot,
        st.integers(0, 5),
        st.sampled_from(["free", "held", "done", "?"]),
        st.none() | st.integers(100, 108),
        st.just(False),
    ),
    unique_by=lambda slot: slot.number,
)
TRIALS = st.lists(
    st.builds(
        TrialHead,
        st.integers(100, 108),
        st.integers(0, 8),
        st.sampled_from([RUNS, TrialState.WAITING, ENDED, TrialState.FAIL]),
        st.none() | st.integers(0, 7),
    ),
    unique_by=lambda head: head.trial_id,
)


@given(SLOTS, TRIALS)
def test_whatever_the_records_are_they_agree_once_they_are_mended(slots, trials):
    found = compare(slots, trials)
    rows = {slot.number: slot for slot in slots}
    heads = {head.trial_id: head for head in trials}
    for difference in found:
        for slot, state, trial_id in difference.entries:
            rows[slot] = Slot(slot, state, trial_id, False)
        for trial_id in difference.aside:
            heads[trial_id] = heads[trial_id]._replace(slot=None)
        for trial_id, number in difference.numbers:
            heads[trial_id] = heads[trial_id]._replace(number=number)
    assert compare(list(rows.values()), list(heads.values())) == []
    own = [head for head in heads.values() if head.slot is not None]
    assert len({head.slot for head in own}) == len(own)
    assert all(rows[head.slot].trial_id == head.trial_id for head in own)
