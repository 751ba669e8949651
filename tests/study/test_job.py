"""The job of a command, as it is stored beside the search."""

import pytest
from answers import answer_of

from studyloom.study.opening import create_study
from studyloom.study.stored_study import (
    Job,
    begin_job,
    end_job,
    note_answer,
    note_compressed,
    open_beside,
    read_job,
)

JOB = Job(8, judged=True, tested=True, top=3, seeds=5, per_hour=0.5)


@pytest.fixture
def stored(url):
    return create_study(url, "toy", {"asks": "nothing"}, trials=8)


def test_a_job_is_read_as_it_was_stored_and_ends_once(stored):
    assert read_job(stored) == (None, {}, None)
    begin_job(stored, JOB, 5.0)
    job, _, _ = read_job(stored)
    assert (job.trials, job.judged, job.tested, job.per_hour) == (8, True, True, 0.5)
    assert (job.ended, job.at) == (None, None)
    end_job(stored, 1)
    end_job(stored, 0)
    job, _, _ = read_job(stored)
    assert job.ended == 1
    assert job.began < job.at
    begin_job(stored, JOB, 0.0)
    assert read_job(stored)[0].ended is None


def test_what_is_noted_of_a_winner_made_small_stays_with_that_winner(stored):
    answer = answer_of(winner={"trial": 2}).in_short()
    record = {"name": "as it is", "bytes": 3, "interval": [-1, 1]}
    note_compressed(stored, record)
    assert read_job(stored)[2] is None, "of no answer"
    note_answer(stored, answer)
    note_compressed(stored, record)
    noted = read_job(stored)[2]
    assert (noted["compressed"]["bytes"], noted["compressed"]["interval"]) == (3, [-1, 1])
    note_answer(stored, answer)
    assert read_job(stored)[2] == noted
    note_answer(stored, answer | {"trial": 3})
    assert "compressed" not in read_job(stored)[2]


def test_a_study_beside_another_is_opened_on_its_connections(stored, url):
    create_study(url, "toy/re-evaluation 8-3-5", {"asks": "less"}, trials=2)
    beside = open_beside(stored, "toy/re-evaluation 8-3-5")
    assert beside.ledger.counts() == {"free": 2, "held": 0, "done": 0}
    assert open_beside(stored, "toy/retraining 8-3-5") is None
