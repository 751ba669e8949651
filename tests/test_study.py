import subprocess
import sys
import threading

import optuna
import pytest
import torch
from optuna.trial import TrialState
from toys import TINY, ask, toy_folds, toy_split

from studyloom.ledger import Ledger
from studyloom.question import Question
from studyloom.storage import StorageError, connect
from studyloom.study import (
    BASELINE,
    EPOCHS,
    FAILURE,
    REASON,
    SLOT,
    QuestionError,
    Worker,
    create_record,
    differences,
    open_record,
)

SPLIT = toy_split()
FOLDS = toy_folds(SPLIT)
RANDOM = (*TINY, "sampler=random", "pruner=none")


@pytest.fixture(scope="module")
def question():
    return ask(*RANDOM)


def work(question: Question, record, trials, stopping=lambda: False):
    Worker(question, record, SPLIT, FOLDS, stopping).run(trials)


def fresh(url, question, trials, name="s"):
    return create_record(url, name, question.identity("toy"), trials)


def outcomes(record):
    return {(t.number, tuple(sorted(t.params.items())), t.value, t.state) for t in record.trials()}


def test_n_means_n_over_any_number_of_workers(url, question):
    record = fresh(url, question, 9)
    workers = [threading.Thread(target=work, args=(question, open_record(url, "s"), 9)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    work(question, record, 9)  # a re-join of a full study
    trials = record.trials()
    assert [trial.number for trial in trials] == list(range(9))
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.FAIL}
    assert sorted(trial.user_attrs[SLOT] for trial in trials) == list(range(9))
    assert len({tuple(sorted(trial.params.items())) for trial in trials}) == 9
    assert record.ledger.counts() == {"free": 0, "held": 0, "done": 9}


def test_a_budget_extended_continues_with_the_difference(sqlite_url, question):
    work(question, fresh(sqlite_url, question, 2), 2)
    before = outcomes(open_record(sqlite_url, "s"))
    record = fresh(sqlite_url, question, 5)
    work(question, record, 5)
    assert len(record.trials()) == 5
    assert before <= outcomes(record)


def test_the_baseline_is_trial_0_and_the_best_is_never_worse(sqlite_url, question):
    record = fresh(sqlite_url, question, 6)
    work(question, record, 6)
    baseline = record.trials()[0]
    assert baseline.params == question.baseline.params
    assert baseline.user_attrs[BASELINE] is True
    assert baseline.state == TrialState.COMPLETE
    assert record.study.best_value >= baseline.value
    assert [t.number for t in record.trials() if BASELINE in t.user_attrs] == [0]


def test_without_a_baseline_trial_0_is_sampled(sqlite_url):
    question = ask(*RANDOM, "study.baseline=false")
    record = fresh(sqlite_url, question, 1)
    work(question, record, 1)
    assert BASELINE not in record.trials()[0].user_attrs
    assert record.trials()[0].params != ask(*RANDOM).baseline.params


WORK = """
import sys; sys.path[:0] = ["tests", "."]
from toys import TINY, ask, toy_folds, toy_split
from studyloom.study import Worker, open_record
question, split = ask(*TINY, "sampler=random", "pruner=none"), toy_split()
Worker(question, open_record(sys.argv[1], "s"), split, toy_folds(split), lambda: False).run(int(sys.argv[2]))
"""


def test_a_trial_is_what_its_study_seed_and_number_make_it(tmp_path, question):
    """Alone or beside others, in one go or in three, with the random sampler."""
    alone = fresh(f"sqlite:///{tmp_path}/a.db", question, 6)
    work(question, alone, 6)
    url = f"sqlite:///{tmp_path}/b.db"
    beside = fresh(url, question, 6)
    work(question, beside, 2)
    workers = [subprocess.Popen([sys.executable, "-c", WORK, url, "6"]) for _ in range(2)]
    assert [worker.wait() for worker in workers] == [0, 0]
    assert outcomes(alone) == outcomes(beside)
    other = fresh(f"sqlite:///{tmp_path}/c.db", other_seed := ask(*RANDOM, "study.seed=1"), 3)
    work(other_seed, other, 3)
    assert not outcomes(other) & outcomes(alone)


def test_tpe_alone_draws_the_same_study_twice(tmp_path):
    question = ask(*TINY, "+sampler.n_startup_trials=3", "+sampler.n_ei_candidates=8")
    records = [fresh(f"sqlite:///{tmp_path}/{name}.db", question, 8) for name in "ab"]
    for record in records:
        work(question, record, 8)
    assert outcomes(records[0]) == outcomes(records[1])


def test_a_grid_visits_each_point_once(url):
    question = ask(
        *RANDOM,
        "sampler=grid",
        "~space.optimizer",
        "~space.model",
        "+space.model.activation.choice=[relu,tanh]",
    )
    assert question.trials() == 6
    record = fresh(url, question, 6)
    workers = [threading.Thread(target=work, args=(question, open_record(url, "s"), 6)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    points = [(t.params["train.batch_size"], t.params["model.activation"]) for t in record.trials()]
    assert sorted(points) == sorted((b, a) for b in (16, 32, 64) for a in ("relu", "tanh"))
    assert record.trials()[0].params == question.baseline.params


def test_a_stopped_trial_is_handed_back_and_the_same_trial_is_gone_on_with(url, question):
    record = fresh(url, question, 2)
    answers = iter([False, True, True])  # before the claim, after the first epoch, …
    work(question, record, 2, stopping=lambda: next(answers))
    assert record.ledger.counts() == {"free": 2, "held": 0, "done": 0}
    assert [list(t.intermediate_values) for t in record.trials()] == [[1]]
    again = open_record(url, "s")
    work(question, again, 2)
    clean = fresh(url, question, 2, name="clean")
    work(question, clean, 2)
    assert outcomes(again) == outcomes(clean)
    assert [list(t.intermediate_values) for t in again.trials()] == [[1, 2], [1, 2]]


def test_a_trial_that_was_made_and_not_attached_is_found(url, question):
    record = fresh(url, question, 1)
    claim = record.ledger.claim("dead", 1)
    template = optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs={SLOT: claim.slot})
    record.storage.create_new_trial(record.ledger.study_id, template)
    record.ledger.release_owner("dead")
    work(question, open_record(url, "s"), 1)
    assert [trial.state for trial in record.trials()] == [TrialState.COMPLETE]


def test_a_trial_that_was_told_and_whose_slot_was_not_is_left_as_it_is(url, question):
    record = fresh(url, question, 1)
    claim = record.ledger.claim("dead", 1)
    trial = record.study.ask()
    record.ledger.attach(claim, trial._trial_id)
    record.study.tell(trial, 0.25)
    record.ledger.release_owner("dead")
    work(question, open_record(url, "s"), 1)
    assert [t.value for t in record.trials()] == [0.25]
    assert record.ledger.counts()["done"] == 1


class Broken(torch.nn.Module):
    """Fails in training, and only there: a look at two empty images is fine."""

    error: Exception = RuntimeError("a bug")

    def __init__(self, shape, classes):
        super().__init__()
        self.layer = torch.nn.Linear(shape[0] * shape[1] * shape[2], classes)

    def forward(self, images):
        if len(images) > 2:
            raise self.error
        return self.layer(images.flatten(1))


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (RuntimeError("a bug"), "error", "RuntimeError: a bug"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory", "OutOfMemoryError: CUDA out of memory"),
        (MemoryError(), "out_of_memory", "MemoryError: "),
    ],
)
def test_a_failure_says_why_and_the_study_goes_on(sqlite_url, monkeypatch, error, kind, reason):
    monkeypatch.setattr(Broken, "error", error)
    question = ask("space=lr", "sampler=random", "train.epochs=1", "train.batch_size=32")
    question.config.model = {"_target_": "test_study.Broken"}
    record = fresh(sqlite_url, question, 2)
    monkeypatch.setattr(Question, "at", lambda self, point: question.config)
    work(question, record, 2)
    for trial in record.trials():
        assert trial.state == TrialState.FAIL
        assert trial.user_attrs[FAILURE] == kind
        assert trial.user_attrs[REASON].strip() == reason.strip()


def test_a_diverged_trial_says_so(sqlite_url):
    question = ask(*TINY, "optimizer=sgd", "~space.optimizer", "optimizer.lr=1e30")
    record = fresh(sqlite_url, question, 1)
    work(question, record, 1)
    (trial,) = record.trials()
    assert (trial.state, trial.user_attrs[FAILURE]) == (TrialState.FAIL, "diverged")
    assert "loss is" in trial.user_attrs[REASON]


def test_a_learning_curve_is_stored_with_its_trial(sqlite_url, question):
    record = fresh(sqlite_url, question, 1)
    work(question, record, 1)
    (trial,) = record.trials()
    curve = trial.user_attrs[EPOCHS]
    assert curve["number"] == [1, 2]
    assert curve["accuracy"] == pytest.approx(list(trial.intermediate_values.values()), abs=1e-6)
    assert set(curve) == {"number", "train_loss", "valid_loss", "accuracy", "seconds", "samples_per_second"}


def test_another_question_under_the_same_name_is_refused_with_the_differences(url, question):
    fresh(url, question, 1)
    with pytest.raises(QuestionError, match=r"train\.epochs: 2 → 3") as caught:
        create_record(url, "s", ask(*RANDOM, "train.epochs=3").identity("other"), 1)
    assert "data.digest: toy → other" in str(caught.value)
    assert "study.name=" in str(caught.value)
    fresh(url, ask(*RANDOM, "sampler=tpe", "pruner=median", "study.trials=9"), 9)  # other ways to the same answer


def test_differences_tell_what_came_and_what_went():
    assert differences({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4}) == ["b: 2 → 3", "c: (absent) → 4"]
    assert differences({"a": [1]}, {}) == ["a: [1] → (absent)"]


def test_a_study_whose_maker_died_half_way_is_completed(url, question):
    connect(url, create=True)
    optuna.create_study(study_name="s", storage=connect(url), direction="maximize")
    backend = connect(url)
    with pytest.raises(Exception, match="studyloom_slots"):
        Ledger(backend, 1).counts()
    record = fresh(url, question, 1)
    work(question, record, 1)
    assert len(record.trials()) == 1


def test_a_study_that_is_not_there_is_named_with_those_that_are(sqlite_url, question):
    fresh(sqlite_url, question, 1, name="mine")
    with pytest.raises(StorageError, match="no study 'yours'; it holds mine"):
        open_record(sqlite_url, "yours")


CREATE = """
import sys; sys.path[:0] = ["tests", "."]
from toys import TINY, ask
from studyloom.study import create_record
print(len(create_record(sys.argv[1], "s", {"a": 1}, 5).ledger.counts()))
"""


@pytest.mark.parametrize("processes", [6])
def test_any_number_of_processes_may_create_one_study_at_once(url, processes):
    running = [
        subprocess.Popen([sys.executable, "-c", CREATE, url], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(processes)
    ]
    for process in running:
        out, err = process.communicate()
        assert process.returncode == 0, err.decode()
        assert out.strip() == b"3"
    record = open_record(url, "s")
    assert record.ledger.counts() == {"free": 5, "held": 0, "done": 0}
    assert len(record.storage.get_all_studies()) == 1
