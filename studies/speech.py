"""Spoken digits as spectrograms; one speaker is the test set; how they are varied in training.

It is what the study `digits_spoken` trains on. The recordings came with studyloom.
"""

from studyloom.data import Sound, asset

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset


class Spoken(Dataset[tuple[Tensor, int]]):
    """The recordings of some speakers of the Free Spoken Digit Dataset, 500 of each.

    An item is a spectrogram, float32 (1, 24, 32), and its digit.

    Args:
        part: train for all speakers but one, or test for that one.
        test_speaker: who it is: george, jackson, lucas, nicolas, theo or yweweler.
    """

    def __init__(self, part: str, test_speaker: str) -> None:
        with asset("spoken.npz") as file, np.load(file, allow_pickle=False) as data:
            speakers, levels, digits = (data[name] for name in ("speakers", "levels", "digits"))
        if test_speaker not in speakers:
            names = ", ".join(np.unique(speakers))
            raise ValueError(f"data.train.test_speaker must be one of {names}; got {test_speaker}")
        chosen = (speakers == test_speaker) == (part == "test")
        self.targets = digits[chosen].astype(np.int64)
        self.speakers = speakers[chosen].tolist()
        self.spectrograms = Sound().normalize(torch.from_numpy(levels[chosen]))

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.spectrograms[index], int(self.targets[index])


def speakers(recordings: Spoken) -> list[str]:
    """Returns who speaks in each recording: the groups that no fold divides."""
    return recordings.speakers


def step(
    network: nn.Module,
    batch: tuple[Tensor, Tensor],
    loss: Callable[[Tensor, Tensor], Tensor],
    speed: float = 0.0,
    pitch: float = 0.0,
    shift: float = 0.0,
    tilt: float = 0.0,
    mask: int = 0,
) -> Tensor:
    """Trains on spectrograms as other speakers and microphones might have given them.

    Each recording is varied by its own random numbers, drawn evenly on both sides of 0.

    Args:
        network: maps (n, 1, bands, frames) to logits (n, 10).
        batch: spectrograms and digits.
        loss: of logits and digits.
        speed: the largest share by which time runs faster or slower.
        pitch: that of the mel axis, whose lower end stays: longer or shorter vocal tracts.
        shift: the largest shift in time, as a share of half the recording.
        tilt: by how much high bands and middle ones become louder or fainter at most, in standard
            deviations of a spectrogram: other microphones.
        mask: how many bands, and how many frames, are covered at most (SpecAugment, Park et al.
            2019, arXiv:1904.08779).
    """
    spectrograms, digits = batch
    varied = warp(spectrograms, speed, pitch, shift)
    return loss(network(cover(equalize(varied, tilt), mask)), digits)


def warp(spectrograms: Tensor, speed: float, pitch: float, shift: float) -> Tensor:
    """Stretches time and mel axis, and shifts time; the edges repeat beyond the ends."""
    time, mel, late = (1 - 2 * torch.rand(3, len(spectrograms))).to(spectrograms.device)
    places = torch.zeros(len(spectrograms), 2, 3, device=spectrograms.device)
    places[:, 0, 0], places[:, 0, 2] = 1 + speed * time, shift * late
    places[:, 1, 1], places[:, 1, 2] = 1 + pitch * mel, -pitch * mel  # the last row stays
    grid = functional.affine_grid(places, [*spectrograms.shape], align_corners=False)
    return functional.grid_sample(spectrograms, grid, padding_mode="border", align_corners=False)


def equalize(spectrograms: Tensor, tilt: float) -> Tensor:
    """Adds a slope and a bow along the mel axis."""
    bands = torch.linspace(-1, 1, spectrograms.shape[2], device=spectrograms.device)[:, None]
    slope, bow = (tilt * (1 - 2 * torch.rand(2, len(spectrograms), 1, 1, 1))).to(bands.device)
    return spectrograms + slope * bands + bow * torch.cos(math.pi * bands)


def cover(spectrograms: Tensor, most: int) -> Tensor:
    """Sets up to `most` neighboring bands, and as many frames, to 0, which is the mean."""
    for axis in (2, 3):
        size = spectrograms.shape[axis]
        width = torch.randint(0, most + 1, (len(spectrograms), 1))
        start = (torch.rand(len(spectrograms), 1) * (size - width + 1)).floor()
        places = torch.arange(size)
        covered = ((places >= start) & (places < start + width)).to(spectrograms.device)
        covered = covered[:, None, :, None] if axis == 2 else covered[:, None, None, :]
        spectrograms = spectrograms.masked_fill(covered, 0)
    return spectrograms
