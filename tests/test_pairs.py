"""The study of images and recordings: who is in which part, and a part that is missing."""

import numpy as np
import pytest
import torch
from toys import ask

from studies.pairs import FUSIONS, PairNet, Pairs
from studyloom.config.build import build


@pytest.fixture(scope="module")
def parts():
    return Pairs("train", "theo"), Pairs("test", "theo")


def test_a_pair_shows_and_says_one_digit_and_no_image_is_in_two_pairs(parts):
    for part, count in zip(parts, (2500, 500), strict=True):
        assert len({*part.images_of.tolist()}) == len(part) == count
    train, test = ({image.numpy().tobytes() for image in part.images} for part in parts)
    assert not train & test


def test_no_speaker_is_in_two_sets(parts):
    source = build(
        ask("data.train.test_speaker=theo", name="seen_and_heard").config["data"], "data"
    )
    split = source.train()
    who, tested = (np.array(part.speakers) for part in parts)
    assert "theo" not in who
    assert {*tested} == {"theo"}
    for count, seed in ((5, 0), (1, 3)):
        for learnt, validated in split.folds(count, source.validation, seed):
            assert not {*who[learnt]} & {*who[validated]}


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_fusion_reads_only_its_modalities(parts, fusion):
    torch.manual_seed(0)
    network = PairNet(10, fusion, channels=4).eval()
    images, sounds = parts[0].images[:16], parts[0].sounds[:16]
    both = network(images, sounds)
    reads_images = not torch.equal(both, network(images.roll(1, 0), sounds))
    reads_sounds = not torch.equal(both, network(images, sounds.roll(1, 0)))
    assert (reads_images, reads_sounds) == (fusion != "sound", fusion != "image")
    if fusion == "add":
        alone = network(images, 0 * sounds) + network(0 * images, sounds)
        assert torch.allclose(alone, both, atol=1e-5)
    assert network(0 * images, 0 * sounds).isfinite().all()
