"""The coordinate check: whether a network's activations change equally at all of its sizes.

Source: Yang et al. 2022 (arXiv:2203.03466), appendix D.1.
"""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import linear_regression
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from studyloom.data.training_data import Part
from studyloom.training.job import Job
from studyloom.training.trainer import JobRun

STEPS, EXAMPLES, SEEDS = 3, 32, 4
# At base widths of 32 to 64 and rates of Adam from 2⁻¹⁰ to 2⁻⁶ the steepest slope of each MLP, CNN,
# GRU and Transformer was at most .14 under the rule, and at least .84 without; at a base of 16 and
# rates of up to 2⁻⁷ at most .44 under the rule.
THRESHOLD = 0.5


def check_coordinates(jobs: Sequence[tuple[float, Job]], part: Part) -> list[str]:
    """Returns the layers whose slope is above THRESHOLD, see `measure_slopes`."""
    return [name for name, slope in measure_slopes(jobs, part).items() if slope > THRESHOLD]


def measure_slopes(jobs: Sequence[tuple[float, Job]], part: Part) -> dict[str, float]:
    """Measures how the activations of each layer with parameters scale with the size.

    Each job is trained for three steps at a constant rate on one batch of at most 32 examples.

    Args:
        jobs: (size, job), at two sizes or more, the largest last.

    Returns:
        d log(mean absolute change by the steps) / d log(size), by the layer's name; that of the
        whole network is named `outputs`. Under the rule it is about 0; infinite if an activation
        is.

    Raises:
        ConfigError: the rule does not cover a network or an optimizer.
    """
    points: dict[str, list[tuple[float, float]]] = {}
    for size, job in jobs:
        # Initial weights of a narrow layer are a small sample: more of them, which cost little.
        for seed in range(min(SEEDS, math.ceil(jobs[-1][0] / size))):
            changes = _changes(replace(job, seed=job.seed + seed), part)
            for name, change in changes.items():
                points.setdefault(name, []).append((size, change))
    slopes = {}
    for name, found in points.items():
        if not all(math.isfinite(change) for _, change in found):
            slopes[name] = math.inf
        elif all(change for _, change in found):  # else no step reached it, as if it were frozen
            logs = [(math.log(size), math.log(change)) for size, change in found]
            slopes[name] = linear_regression(*zip(*logs, strict=True)).slope
    return slopes


def _changes(job: Job, part: Part) -> dict[str, float]:
    train = job.train[:: math.ceil(len(job.train) / EXAMPLES)]
    job = replace(
        job,
        train=train,
        batch_size=len(train),
        samples_per_epoch=None,
        epochs=STEPS,
        until=None,
        schedule=lambda progress: 1.0,
        precision="fp32",
    )
    run = JobRun(job, part)
    with contextlib.closing(run.batches):
        random = run.random
        before = _activations(run)
        for _ in range(STEPS):
            with run.own_randomness():
                for count, batches in run.batches.steps():
                    run.train_step(count, batches)
        run.random = random  # the same order and dropout
        after = _activations(run)
    pairs = {name: [*zip(after[name], tensors, strict=True)] for name, tensors in before.items()}
    return {
        name: sum(float((new - old).abs().mean()) for new, old in each) / len(each)
        for name, each in pairs.items()
    }


def _activations(run: JobRun) -> dict[str, list[Tensor]]:
    """Returns the outputs of each layer, one for each of its calls, in a forward pass."""
    found: dict[str, list[Tensor]] = {}
    modules = run.model.named_modules()
    names = {module: name or "outputs" for name, module in modules if not name or _is_layer(module)}

    def keep(module: nn.Module, _: Any, result: Any) -> None:
        result = result[0] if isinstance(result, tuple) else getattr(result, "logits", result)
        if module in names and isinstance(result, Tensor):
            found.setdefault(names[module], []).append(result.detach().float())

    run.model.train()
    with register_module_forward_hook(keep), run.own_randomness():
        for _, batches in run.batches.steps():
            for batch, _ in batches:
                run.steps.train(run.model, batch)
    return found


def _is_layer(module: nn.Module) -> bool:
    """Whether a module has parameters and computes with them itself."""
    own = next(module.parameters(recurse=False), None) is not None
    return own and (isinstance(module, nn.MultiheadAttention) or not [*module.children()])
