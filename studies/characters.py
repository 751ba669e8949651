"""A small Transformer that reads Alice in Wonderland letter by letter (after Vaswani et al., 2017).

It is the loop of the study `language`; only the text comes from studyloom.
"""

from studyloom import Run
from studyloom.data import asset

import math
import re

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

PARTS = {"train": slice(0, 8), "valid": slice(8, 10), "test": slice(10, 12)}  # chapters
CHAPTERS = 12
CONTEXT = 48  # characters that the network looks back on
BATCH = 16
STEPS = 50  # of the optimizer in an epoch


def characters(part: str) -> tuple[Tensor, int]:
    """Returns the characters of a part as numbers, int64 (n,), and how many kinds there are."""
    with asset("alice.txt") as file:
        text = file.read().decode("ascii")
        chapters = re.split(r"(?m)^(?=CHAPTER )", text)[1:]
        if len(chapters) != CHAPTERS:
            raise ValueError(f"must have {CHAPTERS} chapters; got {len(chapters)}")
    number = {character: index for index, character in enumerate(sorted(set(text)))}
    return torch.tensor([number[c] for c in "".join(chapters[PARTS[part]])]), len(number)


class Reader(nn.Module):
    """Gives logits of the next character at each position of a text.

    Args:
        kinds: of characters.
        width: of the vector of each character; a multiple of 16.
        layers: of attention.
        dropout: the probability.
    """

    def __init__(self, kinds: int, width: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.character = nn.Embedding(kinds, width)
        self.position = nn.Embedding(CONTEXT, width)
        layer = nn.TransformerEncoderLayer(
            width, width // 16, 4 * width, dropout, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, kinds))

    def forward(self, texts: Tensor) -> Tensor:
        length = texts.shape[1]
        later = torch.ones(length, length, dtype=torch.bool, device=texts.device).triu(1)
        position = self.position(torch.arange(length, device=texts.device))
        return self.head(self.layers(self.character(texts) + position, mask=later))


def make_reader(width: int, layers: int, dropout: float) -> Reader:
    return Reader(characters("train")[1], width, layers, dropout)


def reader_of(params: DictConfig) -> Reader:
    return make_reader(params.width, params.layers, params.dropout)


def train(config: DictConfig, run: Run) -> float:
    """Trains a reader, and reports its perplexity on the validation chapters after each epoch."""
    params = config.params
    text, valid = (characters(part)[0].to(run.device) for part in ("train", "valid"))
    net = reader_of(params).to(run.device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=params.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, params.lr, total_steps=params.epochs * STEPS
    )
    run.keep(net=net, optimizer=optimizer, schedule=schedule)
    run.cost(parameters=sum(parameter.numel() for parameter in net.parameters()))
    for _ in run.epochs(params.epochs):
        net.train()
        for _ in range(STEPS):
            starts = torch.randint(len(text) - CONTEXT, (BATCH,), generator=run.generator)
            places = (starts[:, None] + torch.arange(CONTEXT + 1)).to(run.device)
            loss = loss_of(net, text[places])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        run.report(perplexity=perplexity(net, valid), loss=loss.item())
    return run.value


def test(config: DictConfig, run: Run, dataset: None) -> dict[str, float]:
    """Returns the perplexity of a trained reader on the last two chapters."""
    text, _ = characters("test")
    net = reader_of(config.params).to(run.device)
    run.keep(net=net)
    return {"perplexity": perplexity(net, text.to(run.device))}


def loss_of(net: Reader, texts: Tensor) -> Tensor:
    """Returns the mean cross-entropy of each character given those before it."""
    return nn.functional.cross_entropy(net(texts[:, :-1]).flatten(0, 1), texts[:, 1:].flatten())


@torch.no_grad()
def perplexity(net: Reader, text: Tensor) -> float:
    """Returns between how many characters a reader is in doubt, on pieces of a text."""
    net.eval()
    pieces = text.unfold(0, CONTEXT + 1, CONTEXT)
    return math.exp(loss_of(net, pieces).item())
