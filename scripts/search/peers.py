"""Other optimizers, in the same simulated time on the same tasks; see `peer_process`.

Each runs in a separate environment, since their requirements exclude each other. Optuna runs in
this one.
"""

import contextlib
import heapq
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from studyloom.space.tree import Configuration

from . import peer_process
from .simulator import Tape, cost_of
from .tables import Results

REQUIRED = {  # what is installed for each
    "optuna": (),
    "optuna-hyperband": (),
    "optuna-gp": (),
    "optuna-gp-halving": (),
    "smac": ("smac>=2.3,<3",),
}


def prepare(name: str, folder: Path) -> tuple[Path | None, str]:
    """Makes the environment of a peer, unless it is there.

    Args:
        name: of `REQUIRED`.
        folder: of environments.

    Returns:
        Its interpreter, or None; and why there is none.
    """
    if not (wanted := REQUIRED[name]):
        return Path(sys.executable), ""
    python, done = folder / name / "bin" / "python", folder / name / "installed"
    if not done.exists() or done.read_text() != str(wanted):
        for command in (
            (sys.executable, "-m", "venv", str(folder / name)),
            (str(python), "-m", "pip", "install", "--quiet", *wanted),
        ):
            made = subprocess.run(command, capture_output=True, text=True)
            if made.returncode:
                return None, (made.stderr.strip() or "no reason given").splitlines()[-1]
        done.write_text(str(wanted))
    return python, ""


class Peer:
    """A peer in its process, for one search.

    Args:
        name: of the peer.
        python: its interpreter.
        place: a folder for its files.
    """

    def __init__(self, name: str, python: Path, place: Path) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [python, "-P", peer_process.__file__, name],
            env=os.environ | {"TMPDIR": str(place)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def call(self, *arguments: Any) -> Any:
        """Calls the peer, and returns its reply.

        Raises:
            RuntimeError: the peer raised an error, or ended.
        """
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(OSError):  # of a process that has ended
            process.stdin.write(json.dumps(arguments) + "\n")
            process.stdin.flush()
        line = process.stdout.readline()
        reply = json.loads(line) if line else {"error": "its process ended"}
        if isinstance(reply, dict):
            raise RuntimeError(f"{self.name}: {reply['error']}")
        return reply

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


def search(
    peer: Peer,
    results: Results,
    seed: int,
    budget: int,
    workers: int = 1,
    trials: int | None = None,
) -> Tape:
    """Searches with a peer until a budget is spent.

    A trial that continues costs only its new epochs, as with a checkpoint, which favors those that
    train again.

    Args:
        peer: that was just started.
        results: what is searched.
        seed: of the search.
        budget: epochs.
        workers: simulated.
        trials: that may begin; None for any number.
    """
    tape, task = Tape(budget), results.task
    peer.call("begin", describe_space(task.space), task.epochs, seed)
    found: dict[int, int] = {}  # by trial: its configuration
    reached: dict[int, int] = {}  # by trial: its epochs
    jobs: dict[int, tuple[int, int]] = {}  # by worker: trial, and the epoch to train to
    events, idle = [(0.0, worker) for worker in range(workers)], list[int]()
    while events and not tape.full:
        now, worker = heapq.heappop(events)
        if worker in jobs:
            trial, until = jobs[worker]
            reached[trial] += 1
            value = float(results.curve(found[trial])[reached[trial] - 1])
            tape.add(trial, found[trial], reached[trial], value)
            if reached[trial] < until:
                heapq.heappush(events, (now + cost_of(found[trial]), worker))
                continue
            del jobs[worker]
            peer.call("tell", worker, value)
            while idle:
                heapq.heappush(events, (now, idle.pop()))
        while (proposed := peer.call("propose", worker)) is not None:
            trial, values, until = proposed
            if trial not in found:
                if len(found) == trials:
                    break
                params = {f"params.{name}": value for name, value in values.items()}
                found[trial], reached[trial] = results.find(Configuration(params=params)), 0
            if reached[trial] < until:
                jobs[worker] = (trial, until)
                heapq.heappush(events, (now + cost_of(found[trial]), worker))
                break
            peer.call("tell", worker, float(results.curve(found[trial])[until - 1]))
        else:
            idle.append(worker)
    return tape


def describe_space(space: Mapping[str, Any]) -> list[peer_process.Hyperparameter]:
    """Returns the hyperparameters of a task as a peer reads them."""
    options = space.get("network", {})
    nodes = {"network": {"choice": [*options]}} if options else dict(space)
    needs = dict[str, str]()
    for option, inner in options.items():
        nodes |= {f"network.{option}.{name}": node for name, node in inner.items()}
        needs |= {f"network.{option}.{name}": option for name in inner}
    return [
        (name, *next(iter(node.items())), node.get("log", False), needs.get(name))
        for name, node in nodes.items()
    ]
