"""The study of spoken digits, reduced, from its search to the prediction of a WAV file."""

import json

import pytest
from commands import study, studyloom
from sounds import sweep, wav

pytestmark = pytest.mark.nightly

FEW = (
    *("data.train.sealed=george", "study.trials=2", "train.epochs=2", "objective.folds=2"),
    *("train.samples_per_epoch=1000", "winner.seeds=1", "launcher.workers=1"),
)


def test_it_learns_to_hear_digits_of_a_speaker_unheard_and_answers_a_wav_file(tmp_path):
    run_dir = tmp_path / "run"
    done = study(*FEW, f"run_dir={run_dir}", page="digits_spoken")
    assert done.returncode == 0, done.stderr
    answer = json.loads((run_dir / "winner.json").read_text())
    assert answer["test"]["examples"] == 500
    assert answer["test"]["winner"]["mean"] > 0.2, "chance is 0.1"
    (tmp_path / "word.wav").write_bytes(wav(sweep(0.5, 300, 1800, 16000), 16000))
    (tmp_path / "quiet.wav").write_bytes(wav(0 * sweep(0.5, 300, 1800, 8000), 8000))
    asked = (tmp_path / "word.wav", tmp_path / "quiet.wav")
    told = studyloom("predict", run_dir, *asked, "--trust", "studies")
    assert told.returncode == 2
    assert told.stdout.rstrip().endswith("16000 samples a second, resampled to 8000")
    assert told.stderr.strip() == f"error: {asked[1]}: it must be a sound, and is silent"
