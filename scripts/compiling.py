"""Measures the gain of torch.compile in a training step on a processor, and when it has paid.

    python scripts/compiling.py          # 4 quiet minutes, and a C++ compiler

Each network is compiled in a separate process, first with an empty cache on disk and then with
what that left there. In it, blocks of steps of the compiled and of the plain network take turns, on
one thread. A step is forward, loss, backward, and the fused optimizer, which is not compiled.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn

from studyloom.models import CNN, MLP, Transformer

BLOCKS, STEPS = 15, 20  # of steps, of each kind
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "784-128-10, batch 64": (lambda: MLP((1, 28, 28), 10, hidden=[128]), (1, 28, 28), 64),
    "the CNN of studies.mnist, batch 64": (lambda: CNN((1, 28, 28), 10), (1, 28, 28), 64),
    "a transformer, 28 steps, batch 64": (lambda: Transformer((28, 28), 10), (28, 28), 64),
}


def main() -> None:
    """Prints a line for each network."""
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, one thread")
    for name in NETWORKS:
        with tempfile.TemporaryDirectory() as cache:
            cold, warm = (measured(name, cache) for _ in range(2))
        eager, compiled = (warm[kind] for kind in ("eager", "compiled"))
        gain = eager - compiled
        print(f"{name}: {1e6 * eager:.0f} us a step, compiled {1e6 * compiled:.0f}: ", end="")
        print(f"{eager / compiled:.2f} ×; the first step takes {cold['first']:.1f} s, ", end="")
        print(f"with the cache {warm['first']:.1f} s", end="")
        steps = [f"{each['first'] / gain:,.0f}" for each in (cold, warm)] if gain > 0 else None
        print(
            f"; paid after {' or '.join(steps)} steps" if steps else "; it never pays", flush=True
        )


def measured(name: str, cache: str) -> dict[str, float]:
    """Returns seconds: of the first compiled step, and of the median plain and compiled one."""
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, name]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def measure(name: str) -> dict[str, float]:
    """Measures one network in this process."""
    torch.set_num_threads(1)
    make, shape, size = NETWORKS[name]
    inputs, targets = torch.randn(size, *shape), torch.randint(10, (size,))
    plain = stepping(make(), inputs, targets, compiled=False)
    compiled = stepping(make(), inputs, targets, compiled=True)
    plain()
    began = time.perf_counter()
    compiled()
    first = time.perf_counter() - began
    times: dict[str, list[float]] = {"eager": [], "compiled": []}
    for _ in range(BLOCKS):
        for kind, step in (("eager", plain), ("compiled", compiled)):
            began = time.perf_counter()
            for _ in range(STEPS):
                step()
            times[kind].append((time.perf_counter() - began) / STEPS)
    return {"first": first, **{kind: median(took) for kind, took in times.items()}}


def stepping(
    network: nn.Module, inputs: Tensor, targets: Tensor, *, compiled: bool
) -> Callable[[], None]:
    """Returns a function that makes one step of training."""

    def loss(inputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(network(inputs), targets)

    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    forward = torch.compile(loss) if compiled else loss

    def step() -> None:
        forward(inputs, targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


if __name__ == "__main__":
    if sys.argv[1:]:
        print(json.dumps(measure(sys.argv[1])))
    else:
        main()
