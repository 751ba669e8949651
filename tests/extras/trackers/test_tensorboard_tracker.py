"""TensorBoard's own reader shows what it was told, and half an event harms nothing."""

import math
import resource
from collections import Counter

import pytest
from tracked import in_tensorboard, needs

from studyloom.extras.trackers import Answer, Point, TensorBoard, TrackedStudy, TrackedTrial

pytestmark = needs("tensorboard")
NAME = "<img src=x onerror=alert(1)>\x1b[31m\nnext"


def study(folder, uuid="ab" * 16, name="s"):
    return TrackedStudy(name, uuid, {"accuracy": "maximize"}, folder)


def trial(folder, number=0, **params):
    return TrackedTrial(study(folder), number, params, {"worker": "h:1"}, 1000.0, 1010.0)


def points(*epochs, name="accuracy"):
    return [Point(epoch, name, epoch / 8, 1000.0 + epoch) for epoch in epochs]


def test_scalars_hparams_and_state_are_read_back_by_its_own_reader(tmp_path):
    told, known = TensorBoard(str(tmp_path)), {"lr": 0.5, "model": "mlp", "on": True, "layers": 3}
    one = trial(tmp_path, **known)
    told.begin(one)
    told.report_all(one, [*points(1, 2), *points(1, 2, name="train_loss")])
    told.report(one, 3, {"accuracy": 0.375, "train_loss": math.inf})
    told.end(one, "pruned", {"accuracy": 0.375})
    seen = in_tensorboard(tmp_path / "s")[0]
    assert seen.params == {"lr": "0.5", "model": "mlp", "on": "True", "layers": "3.0"}
    wanted = [("accuracy", e, e / 8) for e in (1, 2, 3)] + [
        ("train_loss", e, e / 8) for e in (1, 2)
    ]
    assert seen.curves == Counter([*wanted, ("train_loss", 3, math.inf)])
    assert (seen.state, seen.finals) == ("pruned", {"accuracy": 0.375})
    assert told.known(one).ended
    assert told.ended(study(tmp_path)) == {0}


def test_another_process_goes_on_after_half_an_event(tmp_path):
    one = trial(tmp_path, lr=0.5)
    first = TensorBoard(str(tmp_path))
    first.begin(one)
    first.report_all(one, points(1, 2))
    (file,) = (tmp_path / "s" / "trial-0").glob("events*")
    file.write_bytes(file.read_bytes()[:-5])  # it was killed
    second = TensorBoard(str(tmp_path))
    known = second.known(one)
    assert known.begun
    assert not known.ended
    assert known.points == {(1, "accuracy")}
    second.report_all(one, points(2, 3))
    second.end(one, "complete", {"accuracy": 0.375})
    seen = in_tensorboard(tmp_path / "s")[0]
    assert seen.curves == Counter(("accuracy", epoch, epoch / 8) for epoch in (1, 2, 3))
    assert seen.state == "complete"


def test_a_disk_that_is_full_is_an_error_and_nothing_is_twice_or_lost_once_it_has_room(tmp_path):
    one, told = trial(tmp_path, lr=0.5), TensorBoard(str(tmp_path))
    told.begin(one)
    told.report_all(one, points(1))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    (file,) = (tmp_path / "s" / "trial-0").glob("events*")
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 20, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            told.report_all(one, points(2, 3))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert told.known(one).points == {(1, "accuracy")}
    told.report_all(one, points(2, 3))
    told.end(one, "complete", {})
    seen = in_tensorboard(tmp_path / "s")[0]
    assert seen.curves == Counter(("accuracy", epoch, epoch / 8) for epoch in (1, 2, 3))


def test_another_study_of_the_name_has_a_folder_of_its_own(tmp_path):
    told = TensorBoard(str(tmp_path))
    for uuid in ("ab" * 16, "cd" * 16):
        one = TrackedTrial(study(tmp_path, uuid), 0, {}, {}, 1.0, 2.0)
        assert not told.known(one).begun
        told.begin(one)
        told.end(one, "complete", {})
        assert told.ended(study(tmp_path, uuid)) == {0}
    assert {path.name for path in tmp_path.iterdir()} == {"s", "s-cdcdcdcd"}


def test_hostile_names_and_texts_are_text(tmp_path):
    told = TensorBoard(str(tmp_path))
    one = TrackedTrial(study(tmp_path), 0, {NAME: NAME}, {"reason": NAME}, 1.0, 2.0)
    told.begin(one)
    told.report(one, 1, {NAME: 0.5})
    told.end(one, "failed", {})
    (seen,) = in_tensorboard(tmp_path / "s").values()
    ((name, value),) = seen.params.items()
    ((curve, _, _),) = seen.curves
    for text in (name, value, curve):
        assert "\x1b" not in text
        assert "<img src=x onerror=alert(1)>␛[31m" in text
    content = b"".join(path.read_bytes() for path in (tmp_path / "s" / "trial-0").iterdir())
    assert b"\x1b[31m" not in content


def test_the_answer_is_read_back(tmp_path):
    told = TensorBoard(str(tmp_path))
    assert told.answered(study(tmp_path)) is None
    told.study_end(Answer(study(tmp_path), 3, {"lr": 0.1}, {"test.mean": 0.9}, {}, "d1"))
    told.study_end(Answer(study(tmp_path), 4, {"lr": 0.1}, {"test.mean": 0.9}, {}, "d2"))
    assert told.answered(study(tmp_path)) == "d2"
