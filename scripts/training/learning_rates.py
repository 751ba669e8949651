"""Where the best learning rate of a network lies by its width, with and without the rule."""

import itertools
import math
import os
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from search.simulator import compose

from studyloom.data.training_data import TrainingData
from studyloom.definition.definition import Definition
from studyloom.definition.loop import Unstopped
from studyloom.definition.prepare import load_data
from studyloom.errors import Diverged
from studyloom.space.tree import Point

from .commands import ROOT


@dataclass(frozen=True)
class Sweep:
    """Learning rates, as powers of 2, of one network at several widths.

    Args:
        widths: the base first, as values of `key`.
        measured: what it is compared by.
    """

    module: str
    overrides: tuple[str, ...]
    key: str
    widths: tuple[object, ...]
    rate: str
    powers: tuple[int, ...]
    measured: str


SWEEPS = {
    "MLP, MNIST": Sweep(
        "mnist",
        (
            *("data=mnist", "model=mlp", "space=none", "optimizer=adam", "pruner=none"),
            *("train.epochs=2", "train.samples_per_epoch=10000"),
        ),
        "model.hidden",
        ([64] * 3, [256] * 3, [1024] * 3),
        "optimizer.lr",
        (-13, -12, -11, -10, -9, -8, -7, -6, -5),
        "validation loss",
    ),
    "Transformer, the book": Sweep(
        "language",
        ("~space.params", "params.epochs=3", "params.layers=1"),
        "params.width",
        (32, 64, 128),
        "params.lr",
        (-11, -10, -9, -8, -7, -6, -5, -4, -3),
        "perplexity",
    ),
}

COLORS = ("#1b7fb5", "#d98200", "#9c3587")  # of three widths, from the smallest


@dataclass(frozen=True)
class Row:
    """A width of a sweep, with or without the rule.

    Args:
        at: its place among the widths.
    """

    name: str
    rule: str
    at: int

    def losses(self, seed: int) -> list[float]:
        """Returns for each rate the last loss, or what a loop reports; infinite if it diverges."""
        definition, data = define(self.name, self.rule)
        plan = SWEEPS[self.name]
        losses = []
        for power in plan.powers:
            params = {plan.key: plan.widths[self.at], plan.rate: 2.0**power}
            objective = definition.make_objective(Point({}, params, {}, {}), seed, data)
            try:
                value = objective.run(lambda step: None, Unstopped())
                losses.append(float(objective.curves().get("valid_loss", [value])[-1]))
            except Diverged:
                losses.append(math.inf)
        return losses


@cache
def define(name: str, rule: str) -> tuple[Definition, TrainingData]:
    plan = SWEEPS[name]
    scale = f"scale={{{plan.key}:{plan.widths[0]},rule:{rule}}}"
    definition = compose(plan.module, (*plan.overrides, scale))[0]
    return definition, load_data(definition.config)


def start_worker() -> None:
    torch.set_num_threads(1)
    sys.path.append(str(ROOT))  # where studies.characters is


def scale_up(seeds: int, image: Path | None) -> None:
    """Prints the loss of each width and rate, and where each width has its best; and draws them."""
    rows = [
        Row(name, rule, at)
        for name, plan in SWEEPS.items()
        for rule in ("none", "mup")
        for at in range(len(plan.widths))
        if rule == "none" or at > 0  # at the base the rule changes nothing
    ]
    found = {}
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), start_worker) as pool:
        trained = {row: [pool.submit(row.losses, seed) for seed in range(seeds)] for row in rows}
        for row, futures in trained.items():
            plan = SWEEPS[row.name]
            values = np.array([future.result() for future in futures])
            found[row] = values.mean(0)
            losses = " ".join(f"{value:7.4f}" for value in found[row])
            best = plan.powers[int(found[row].argmin())]
            each = ", ".join(str(plan.powers[int(at)]) for at in values.argmin(1))
            label = f"{row.name:22} {row.rule:5} {np.ravel(plan.widths[row.at])[0]:5}"
            print(f"  {label} {losses}  best 2^{best}; by seed {each}", flush=True)
    if image is not None:
        draw(found, image)


def draw(found: Mapping[Row, np.ndarray], image: Path) -> None:
    """Draws a panel for each network and rule, with a line for each width, as a PNG."""
    from browsers import start_chromium  # imported here, for no other bench needs a browser
    from plotly.graph_objects import Scatter
    from plotly.subplots import make_subplots

    panels = list(dict.fromkeys((row.name, row.rule) for row in found))
    titles = [f"{name}, {'no rule' if rule == 'none' else rule}" for name, rule in panels]
    figure = make_subplots(2, 2, subplot_titles=titles, vertical_spacing=0.15)
    for (name, rule), place in zip(panels, itertools.product((1, 2), (1, 2)), strict=True):
        plan = SWEEPS[name]
        rates = [f"2<sup>{power}</sup>" for power in plan.powers]
        for at, (width, color) in enumerate(zip(plan.widths, COLORS, strict=True)):
            losses = found[Row(name, rule if at else "none", at)]
            label = f"{np.ravel(width)[0]} wide"
            line = Scatter(x=rates, y=losses, name=label, line_color=color, mode="lines+markers")
            line.update(legend="legend" if place[0] == 1 else "legend2", showlegend=rule == "none")
            figure.add_trace(line, *place)
        least = min(float(losses.min()) for row, losses in found.items() if row.name == name)
        shown = [0.98 * least, 1.7 * least]
        figure.update_yaxes(range=shown, title_text=plan.measured, row=place[0], col=place[1])
    figure.update_layout(template="plotly_white", width=900, height=720, margin_t=40)
    figure.update_layout(legend={"y": 1}, legend2={"y": 0.44, "yanchor": "top"})
    figure.update_xaxes(title_text="learning rate")
    size = {"width": figure.layout.width, "height": figure.layout.height}
    with start_chromium() as browser:
        page = browser.new_page(viewport=size)
        page.set_content(figure.to_html(config={"staticPlot": True}))
        page.locator(".main-svg").first.wait_for()
        page.screenshot(path=image)
