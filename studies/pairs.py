"""Pairs of a written and a spoken digit, and a network that reads either or both.

It is what the study `seen_and_heard` trains on and with. Both parts of a pair are real, and of one
digit; that they belong together is made up. Images and recordings came with studyloom.

    python -m studies.pairs runs/seen_and_heard     # the winner, with both parts and with one
"""

import studyloom
from studyloom.data import asset

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils.data import Dataset

from studies.speech import Spoken, cover, equalize, warp

FUSIONS = ("image", "sound", "add", "join", "mean")
DIGITS = 10
SIZES = {"image": (1, 28, 28), "sound": (1, 24, 32)}


class Pairs(Dataset[tuple[Tensor, Tensor, int]]):
    """A recording of each speaker with an image of the same digit, which no other pair has.

    An item is an image, float32 (1, 28, 28), a spectrogram, float32 (1, 24, 32), and the digit.

    Args:
        part: train, with images of the training set of MNIST, for all speakers but one; or test,
            with those of its test set, for that one.
        test_speaker: who it is.
    """

    def __init__(self, part: str, test_speaker: str) -> None:
        spoken = Spoken(part, test_speaker)
        self.speakers, self.targets, self.sounds = (
            spoken.speakers,
            spoken.targets,
            spoken.spectrograms,
        )
        with asset("mnist5k.npz") as file, np.load(file, allow_pickle=False) as data:
            images, labels = data[f"{part}_images"], data[f"{part}_labels"]
        self.images_of = np.empty(len(spoken), np.int64)
        for digit in range(DIGITS):
            mine = np.flatnonzero(self.targets == digit)
            self.images_of[mine] = np.flatnonzero(labels == digit)[: len(mine)]
        pixels = torch.from_numpy(images[self.images_of])[:, None].float()
        self.images = (pixels / 255 - 0.1307) / 0.3081

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        return self.images[index], self.sounds[index], int(self.targets[index])


def speakers(pairs: Pairs) -> list[str]:
    """Returns who speaks in each pair: no fold divides the pairs of a speaker."""
    return pairs.speakers


def make_part(
    size: tuple[int, int, int], outputs: int, channels: int, dropout: float
) -> nn.Sequential:
    """Makes a CNN of three blocks for one part of a pair, whose channels double."""
    layers: list[nn.Module] = []
    before, height, width = size
    for block in range(3):
        after = channels * 2**block
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after)]
        layers += [nn.MaxPool2d(2), nn.ReLU()]
        before, height, width = after, height // 2, width // 2
    head = nn.Linear(before * height * width, outputs)
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(dropout), head)


class PairNet(nn.Module):
    """Classifies a digit by an image, by a sound, or by both; a part that is all 0 is missing.

    Args:
        outputs: how many classes there are.
        fusion: image or sound, to read only one; or how to read both: add, by the sum of
            the logits of each; join, by a layer on the features of both; mean, by a layer on their
            mean. Of a part that is missing the features and logits are 0.
        channels: of the first block of each of the two CNNs.
        dropout: the probability.
    """

    def __init__(
        self,
        outputs: int,
        fusion: str = "image",
        channels: int = 8,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        if fusion not in FUSIONS:
            raise ValueError(f"model.fusion must be {', '.join(FUSIONS)}; got {fusion}")
        self.fusion = fusion
        features = outputs if fusion in (*SIZES, "add") else 64
        self.parts = nn.ModuleDict(
            {
                name: make_part(size, features, channels, dropout)
                for name, size in SIZES.items()
                if fusion not in SIZES or name == fusion
            }
        )
        if fusion in ("join", "mean"):
            self.head = nn.Sequential(
                nn.ReLU(), nn.Dropout(dropout), nn.Linear(64 * (1 + (fusion == "join")), outputs)
            )

    def forward(self, image: Tensor, sound: Tensor) -> Tensor:
        features = self.features(image, sound)
        return self.join(features, torch.stack([x.flatten(1).any(1) for x in (image, sound)]))

    def features(self, image: Tensor, sound: Tensor) -> Tensor:
        """Returns the features of both, (2, n, features); (1, n, outputs) if only one is read."""
        given = {"image": image, "sound": sound}
        return torch.stack([part(given[name]) for name, part in self.parts.items()])

    def join(self, features: Tensor, there: Tensor) -> Tensor:
        """Returns logits (n, outputs).

        Args:
            features: of both parts.
            there: whether each part of each pair counts, (2, n).
        """
        if self.fusion in SIZES:
            return features[0]
        features = features * there[:, :, None]
        if self.fusion == "add":
            return features.sum(0)
        if self.fusion == "join":
            return self.head(torch.cat([*features], 1))
        return self.head(features.sum(0) / there.sum(0).clamp(min=1)[:, None])


def step(
    network: PairNet,
    batch: tuple[Tensor, Tensor, Tensor],
    loss: Callable[[Tensor, Tensor], Tensor],
    alone: float = 0.5,
    vary: float = 1.0,
) -> Tensor:
    """Trains on pairs, and on each part separately, so that one may be missing.

    Sounds are varied as other speakers and microphones might have given them.

    Args:
        network: classifies pairs.
        batch: images, spectrograms and digits.
        loss: of logits and digits.
        alone: the weight of the losses of the single parts; that of the pair has weight 1.
        vary: by how much sounds are; 1 is what the study digits_spoken begins with.
    """
    image, sound, digits = batch
    if vary:
        sound = warp(sound, 0.2 * vary, 0.15 * vary, 0.1 * vary)
        sound = cover(equalize(sound, 0.5 * vary), round(6 * vary))
    features = network.features(image, sound)
    both = torch.ones(2, len(digits), dtype=torch.bool, device=image.device)
    total = loss(network.join(features, both), digits)
    if network.fusion in SIZES or not alone:
        return total
    for missing in (0, 1):
        there = both.clone()
        there[missing] = False
        total = total + alone * loss(network.join(features, there), digits)
    return total


def main(run_dir: str) -> None:
    """Prints the accuracy of a winner on the test pairs, complete and with a part missing.

    It is the mean over the networks of all seeds, ± their standard deviation.
    """
    config = OmegaConf.load(Path(run_dir, "winner.yaml"))
    network = studyloom.load_winner(run_dir, trust=["studies"]).network
    sizes = {name: weight.shape for name, weight in network.state_dict().items()}
    found = sorted(Path(run_dir).glob("winner/*/*.pt"))
    trained = [torch.load(path, weights_only=True) for path in found]  # the baseline's too
    trained = [each for each in trained if {n: w.shape for n, w in each.items()} == sizes]
    pairs = Pairs("test", config.data.train.test_speaker)
    targets = torch.from_numpy(pairs.targets)
    for name, keep in (("both", (1, 1)), ("image", (1, 0)), ("sound", (0, 1))):
        values = []
        for weights in trained:
            network.load_state_dict(weights)
            with torch.no_grad():
                outputs = network(pairs.images * keep[0], pairs.sounds * keep[1])
            values.append(float((outputs.argmax(1) == targets).double().mean()))
        print(f"{name:9} accuracy {np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
