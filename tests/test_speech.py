"""The study of spoken digits: who is in which part, and how recordings are varied."""

import hashlib

import numpy as np
import pytest
import torch
from toys import ask

from studies import speech
from studies.speech import Spoken
from studyloom.config.build import build
from studyloom.files import ASSETS

SPEAKERS = ["george", "jackson", "lucas", "nicolas", "theo", "yweweler"]


@pytest.fixture(scope="module")
def train():
    return Spoken("train", "theo")


def test_the_embedded_recordings_never_change():
    content = (ASSETS / "spoken.npz").read_bytes()
    assert hashlib.sha256(content).hexdigest().startswith("42872107d1a805c2")


@pytest.fixture(scope="module")
def section():
    """The section `data` of the study."""
    return ask(name="digits_spoken").config.data


@pytest.mark.parametrize("sealed", ["theo", "george"])
def test_no_speaker_is_in_two_parts(section, sealed):
    section.train.sealed = sealed
    source = build(section)
    train, test = source.train(), source.test()
    assert (len(train), len(test), train.outputs, train.shape) == (2500, 500, 10, (1, 24, 32))
    assert {*Spoken("test", sealed).speakers} == {sealed}
    who = np.array(Spoken("train", sealed).speakers)
    assert {*who} == {*SPEAKERS} - {sealed}
    for count, seed in ((5, 0), (1, 7)):
        folds = train.folds(count, source.validation, seed)
        heard = [({*who[learnt]}, {*who[judged]}) for learnt, judged in folds]
        assert all(not learnt & judged and judged for learnt, judged in heard)
    validated = [judged for _, judged in train.folds(5, source.validation, 0)]
    assert sorted(torch.cat(validated).tolist()) == [*range(2500)]
    assert all(len({*who[judged]}) == 1 for judged in validated)


def test_a_step_draws_by_the_seed_alone(train):
    batch = train.spectrograms[:16], torch.from_numpy(train.targets[:16])
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(24 * 32, 10))
    settings = {"speed": 0.2, "pitch": 0.2, "shift": 0.1, "tilt": 0.5, "mask": 6}
    loss = torch.nn.functional.cross_entropy
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(speech.step(network, batch, loss, **settings).item())
    assert losses[0] == losses[1] != losses[2]
