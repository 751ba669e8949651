"""An image folder with two loaders: the plain loop and ours."""

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from database.toy import show
from PIL import Image
from torch import nn

from studyloom.data import Datasets
from studyloom.training.job import Job
from studyloom.training.trainer import Training


class Images(torch.utils.data.Dataset[Any]):
    """An image folder: PNG files of 64 × 64 pixels, decoded and shifted when they are loaded.

    Args:
        folder: of the files.
        shift: whether they are shifted.
    """

    def __init__(self, folder: str, shift: bool) -> None:
        self.samples = [(str(path), int(path.parent.name)) for path in Path(folder).rglob("*.png")]
        self.targets = [label for _, label in self.samples]
        self.shift = shift

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        path, label = self.samples[index]
        pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)
        if self.shift:
            pixels = pixels.roll(int(torch.randint(-4, 5, ())), -1)
        return pixels.float() / 255, label


def convolutions(**_: Any) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
    )


def loader(repeats: int, images: int) -> None:
    """Three epochs on images in a folder: the plain loop with DataLoaders, and Datasets."""
    torch.set_num_threads(1)
    ways = {"plain, a DataLoader": plain_loader, "ours, Datasets": our_loader}
    took: dict[str, list[tuple[float, float]]] = {label: [] for label in ways}
    with tempfile.TemporaryDirectory() as folder:
        random_pixels = np.random.default_rng(0)
        for number in range(images):
            path = Path(folder, str(number % 10), f"{number}.png")
            path.parent.mkdir(exist_ok=True)
            small = random_pixels.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(small).resize((64, 64)).save(path)
        for repeat in range(repeats + 1):  # the first warms the page cache
            # Each goes first in turn: it runs in what the other has left.
            for label in sorted(ways, reverse=bool(repeat % 2)):
                began, worked = time.perf_counter(), processor_time()
                ways[label](folder, images * 4 // 5)
                if repeat:
                    seconds = time.perf_counter() - began
                    took[label].append((seconds, processor_time() - worked))
    for label, measured in took.items():
        show(label, [seconds for seconds, _ in measured])
        show("  processor time", [seconds for _, seconds in measured])
    # The least: other programs can only add to it.
    plain, ours = ([min(column) for column in zip(*took[label], strict=True)] for label in ways)
    print(
        f"  ratio of the least {plain[0] / ours[0]:.2f}, of processor time {plain[1] / ours[1]:.2f}"
    )


def processor_time() -> float:
    """Returns the seconds of this process, and of those that it has waited for."""
    times = os.times()
    return sum(times[:4])


def plain_loader(folder: str, count: int) -> None:
    """The plain loop: a DataLoader to train on the first images, and one to evaluate."""
    train, valid = (
        torch.utils.data.Subset(Images(folder, shift), part)
        for shift, part in ((True, range(count)), (False, range(count, count * 5 // 4)))
    )
    loaders = [
        torch.utils.data.DataLoader(part, 64, shuffle=part is train, num_workers=2)
        for part in (train, valid)
    ]
    model, loss = convolutions(), nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(3):
        model.train()
        for inputs, targets in loaders[0]:
            optimizer.zero_grad()
            loss(model(inputs), targets).backward()
            optimizer.step()
        model.eval()
        right = 0
        with torch.no_grad():
            for inputs, targets in loaders[1]:
                right += int((model(inputs).argmax(1) == targets).sum())


def our_loader(folder: str, count: int) -> None:
    """The same by Training, with as many processes."""
    data = {"train": Images(folder, True), "evaluate": Images(folder, False)}
    examples = Datasets(**data, validation=count // 4, num_workers=2).train()
    train, valid = torch.arange(count), torch.arange(count, count * 5 // 4)
    loss = nn.CrossEntropyLoss()
    job = Job(convolutions, torch.optim.Adam, lambda _: 1.0, loss, train, valid, 3, 64, 0)
    for _ in Training([job], examples):
        pass
