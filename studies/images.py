"""An image folder of real PNG files, made of the digits that come with studyloom, and its network.

It is what the study `photos` trains on and with; only the digits come from studyloom.
"""

from studyloom.data import asset

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision.datasets import ImageFolder
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.transforms import v2

PIXELS = [v2.Grayscale(), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
NORMALIZE = v2.Normalize([0.1307], [0.3081])


def photos(root: str, part: str, shift: float = 0.0, crop: float = 1.0) -> ImageFolder:
    """Returns a part of the digits as an image folder, which is written if it does not exist.

    Args:
        root: the folder to write to; each part gets a folder below it, with one for each class.
        part: train or test.
        shift: how far an image may be moved, as a share of its size; drawn each time.
        crop: the smallest share of an image that is cut out and enlarged; drawn each time.
    """
    folder = Path(root, part)
    if not folder.exists():
        write_images(folder, part)
    drawn: list[Any] = []
    if shift:
        drawn.append(v2.RandomAffine(0, translate=(shift, shift)))
    if crop < 1:
        drawn.append(v2.RandomResizedCrop(28, scale=(crop, 1.0), ratio=(0.9, 1.1)))
    return ImageFolder(str(folder), v2.Compose([*PIXELS, *drawn, NORMALIZE]))


def write_images(folder: Path, part: str) -> None:
    """Writes a PNG file for each digit, in a folder of its class; whole or not at all."""
    with asset("mnist5k.npz") as file, np.load(file, allow_pickle=False) as arrays:
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{part}-", dir=folder.parent))
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = new / str(label) / f"{number:04}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
        os.utime(path, (0, 0))  # the same data, whenever it is written
    try:
        new.rename(folder)
    except OSError:  # another process was first
        shutil.rmtree(new)


class SmallResNet(ResNet):
    """The first two stages of a ResNet-18 of torchvision (He et al. 2015), for one channel.

    Args:
        outputs: how many numbers the network returns for an image.
        dropout: the probability before the last layer.
    """

    def __init__(self, outputs: int, dropout: float = 0.0) -> None:
        super().__init__(BasicBlock, [1, 1, 1, 1], num_classes=outputs)
        self.conv1 = nn.Conv2d(1, 64, 3, stride=2, padding=1, bias=False)
        self.layer3 = self.layer4 = nn.Identity()
        self.fc = nn.Sequential(nn.Dropout(dropout), nn.Linear(128, outputs))
