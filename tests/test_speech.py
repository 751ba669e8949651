"""The study of spoken digits: who is in which part, and how recordings are varied."""

import hashlib

import numpy as np
import torch
from toys import ask

from studies.speech import Spoken
from studyloom.config.build import build
from studyloom.files import GALLERY

SPEAKERS = ["george", "jackson", "lucas", "nicolas", "theo", "yweweler"]


def test_the_embedded_recordings_never_change():
    content = (GALLERY / "spoken.npz").read_bytes()
    assert hashlib.sha256(content).hexdigest().startswith("42872107d1a805c2")


def test_no_speaker_is_in_two_sets():
    tested = "george"
    source = build(
        ask(f"data.train.test_speaker={tested}", name="digits_spoken").config["data"], "data"
    )
    train, test = source.train(), source.test()
    assert (len(train), len(test), train.outputs, train.shape) == (2500, 500, 10, (1, 24, 32))
    assert {*Spoken("test", tested).speakers} == {tested}
    who = np.array(Spoken("train", tested).speakers)
    assert {*who} == {*SPEAKERS} - {tested}
    for count, seed in ((5, 0), (1, 7)):
        folds = train.folds(count, source.validation, seed)
        heard = [({*who[learnt]}, {*who[validated]}) for learnt, validated in folds]
        assert all(not learnt & validated and validated for learnt, validated in heard)
    validated = [validated for _, validated in train.folds(5, source.validation, 0)]
    assert sorted(torch.cat(validated).tolist()) == [*range(2500)]
    assert all(len({*who[validated]}) == 1 for validated in validated)
