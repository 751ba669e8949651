"""Profiles the wall and processor time of a trial: part by part, in the real command.

`bench.py profile` runs each study in a separate process, with one worker in that process, and
puts a clock around what a trial is made of. A part is charged for itself, without the parts within
it. Its own cost, about 3 us a call, is in the figures. What the kernels take of an epoch is then
counted by torch.profiler, in one further epoch of the last trial.
"""

import contextlib
import functools
import gc
import importlib
import json
import os
import re
import runpy
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

ROOT = Path(__file__).resolve().parent.parent
LOOP, WAIT, STORAGE = "the worker's loop", "handing over to the thread", "storage: python"
# What a function is called where it is, and the part that it is charged to.
PARTS = {
    "studyloom.definition.network:NetworkDefinition.make_objective": "network and optimizer made",
    "studyloom.training.trainer:JobRun.run_epoch": "step: python",
    "studyloom.training.batches:TensorBatches.load_batch": "step: batch gathered",
    "studyloom.training.steps:Steps.train": "step: forward and loss",
    "torch:Tensor.backward": "step: backward",
    "studyloom.training.trainer:JobRun.evaluate": "evaluation",
    "studyloom.training.trainer:Training.state": "checkpoint: copied",
    "studyloom.training.checkpoint:Checkpoint.save": "checkpoint: written",
    "studyloom.training.checkpoint:Checkpoint.remove": "checkpoint: removed",
    "optuna.pruners:PercentilePruner.prune": "pruner",
    "studyloom.worker.reporter:Outbox._wait": WAIT,
    "sqlalchemy.engine.default:DefaultDialect.do_commit": "storage: commit",
}
# The kinds of time that a worker measures itself; of training and evaluation there is more above.
KINDS = {
    "storage": STORAGE,
    "sampling": "sampler",
    "checkpoints": "checkpoint: python",
    "idle": "idle",
}
STATEMENT = re.compile(r"\s*(\w+)(?:.*?\b(?:FROM|INTO|UPDATE)\s+|\s+)?(\w*)", re.DOTALL | re.I)
# Overrides of each study, and how many of its trials are profiled at most.
BENCHES: dict[str, tuple[str, int, tuple[str, ...]]] = {
    "example": ("fashion", 100, ()),
    "tutorial": (
        "mnist",
        1,
        (
            *("study.name=plain", "data=mnist", "space=none", "model.hidden=[128]"),
            *("optimizer=adam", "scheduler=constant", "train.batch_size=100", "train.epochs=10"),
        ),
    ),
    "mnist": ("mnist", 40, ()),
}


class Clock:
    """Adds up wall and processor time by part, for calls within a worker's loop.

    The thread that posts reports has its own stack: the loop waits for it meanwhile.
    """

    def __init__(self) -> None:
        self.spent: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0])
        self.posted = [0.0, 0.0]  # of that thread, which the loop has waited for
        self.began = 0.0
        self._stacks = threading.local()

    @contextlib.contextmanager
    def part(self, label: str, *, outer: bool = False) -> Iterator[None]:
        """Charges the body to a part.

        Args:
            label: of the part.
            outer: whether it is the loop, or a report that is posted; outside them nothing counts.
        """
        stack = self._stacks.__dict__.setdefault("labels", [])
        if not (outer or stack):
            yield
            return
        if outer and label == LOOP and not self.began:
            self.began = time.time()
        self._charge(stack)
        stack.append(label)
        self.spent[label][2] += 1
        try:
            yield
        finally:
            self._charge(stack)
            stack.pop()

    def _charge(self, stack: list[str]) -> None:
        """Charges the time since the last call to the innermost part."""
        now = time.perf_counter(), time.process_time()
        before = self._stacks.__dict__.get("last", now)
        self._stacks.last = now
        if stack:
            for place in (0, 1):
                self.spent[stack[-1]][place] += now[place] - before[place]
                if threading.current_thread() is not threading.main_thread():
                    self.posted[place] += now[place] - before[place]

    def timed(self, label: str, function: Callable[..., Any], *, outer: bool = False) -> Any:
        """Returns a function that is charged to a part."""

        @functools.wraps(function)
        def charged(*args: Any, **kwargs: Any) -> Any:
            with self.part(label, outer=outer):
                return function(*args, **kwargs)

        return charged


def put_clocks(clock: Clock) -> list[Any]:
    """Puts a clock around all parts; returns a list that gets each JobRun which begins an epoch."""
    from sqlalchemy.engine.default import DefaultDialect

    from studyloom.processes import Stopwatch
    from studyloom.training import trainer
    from studyloom.worker.reporter import Outbox

    for place, label in PARTS.items():
        module, _, path = place.partition(":")
        *owners, name = path.split(".")
        owner = functools.reduce(getattr, owners, importlib.import_module(module))
        setattr(owner, name, clock.timed(label, getattr(owner, name)))

    find_step, measure, init = trainer.find_step, Stopwatch.__call__, Outbox.__init__
    executes = {name: getattr(DefaultDialect, name) for name in ("do_execute", "do_executemany")}
    runs: list[Any] = []
    run_epoch = trainer.JobRun.run_epoch

    def keep_run(run: Any) -> Any:
        runs[:] = [run]
        return run_epoch(run)

    @contextlib.contextmanager
    def measured(watch: Any, kind: str) -> Iterator[None]:
        with clock.part(KINDS.get(kind, kind)), measure(watch, kind):
            yield

    def make_outbox(outbox: Any, post: Any, is_away: Any) -> None:
        init(outbox, clock.timed(STORAGE, post, outer=True), is_away)

    def execute_with(execute: Any) -> Any:
        def executed(dialect: Any, cursor: Any, statement: str, *rest: Any) -> Any:
            verb, table = STATEMENT.match(statement).groups()  # type: ignore[union-attr]
            with clock.part(f"storage: {verb.upper()} {table}".rstrip()):
                return execute(dialect, cursor, statement, *rest)

        return executed

    def collected(phase: str, _: object, parts: list[Any] = []) -> None:  # noqa: B006
        if phase == "start":
            parts.append(clock.part("garbage collection"))
            parts[-1].__enter__()
        else:
            parts.pop().__exit__(None, None, None)

    trainer.JobRun.run_epoch = keep_run  # type: ignore[method-assign]
    trainer.find_step = lambda optimizer: clock.timed("step: optimizer", find_step(optimizer))
    Stopwatch.__call__ = measured  # type: ignore[method-assign,assignment]
    Outbox.__init__ = make_outbox  # type: ignore[method-assign]
    for name, execute in executes.items():
        setattr(DefaultDialect, name, execute_with(execute))
    gc.callbacks.append(collected)
    return runs


def kernels_of(run: Any) -> dict[str, Any]:
    """Counts the kernels of one further epoch of a job; its training and evaluation together."""

    def train() -> float:
        run.step = 0  # a schedule ends with the training
        began = time.perf_counter()
        run.run_epoch()
        return time.perf_counter() - began

    train()  # warms the caches
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        epoch = train()  # what the profiler takes is counted as python
    rows = [(row.key, row.self_cpu_time_total / 1e6) for row in profiler.key_averages()]
    kernels = {name: seconds for name, seconds in rows if name.startswith("aten::")}
    return {
        "epoch": epoch,
        "kernels": dict(sorted(kernels.items(), key=lambda row: -row[1])[:8]),
        "all kernels": sum(kernels.values()),
        "autograd": sum(seconds for name, seconds in rows if "ackward" in name)
        - sum(seconds for name, seconds in kernels.items() if "ackward" in name),
    }


def profile_here(study: str, target: str, *overrides: str) -> None:
    """Runs a study with clocks in it, and writes where its time went, as JSON.

    It is written at the end of the worker's loop, which is in a child of this process.
    """
    from studyloom.worker.worker import Worker

    began, clock = time.time(), Clock()
    runs, run = put_clocks(clock), Worker.run

    def run_and_write(worker: Any) -> None:
        with clock.part(LOOP, outer=True):
            run(worker)
        for place in (0, 1):
            clock.spent[WAIT][place] = max(0.0, clock.spent[WAIT][place] - clock.posted[place])
        result = {"start": clock.began - began, "spent": clock.spent}
        Path(target).write_text(json.dumps(result | {"kernels": kernels_of(runs[0])}))

    Worker.run = run_and_write  # type: ignore[method-assign]
    sys.path.insert(0, str(ROOT))
    sys.argv = [f"studies.{study}", *overrides]
    runpy.run_module(f"studies.{study}", run_name="__main__", alter_sys=True)


def profile_benches(trials: int) -> None:
    """Profiles the studies of `example`, `tutorial` and of studies.mnist.

    Args:
        trials: of each at most.
    """
    for bench, (study, most, overrides) in BENCHES.items():
        if bench != "mnist" and "STUDYLOOM_DATA" not in os.environ:
            print(f"{bench}: left out; it needs STUDYLOOM_DATA, the folder with its data")
            continue
        count = min(trials, most)
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder, "profile.json")
            settings = (f"run_dir={folder}/run", f"study.trials={count}", "launcher.workers=1")
            command = [sys.executable, __file__, study, str(target)]
            command += [*overrides, *settings, "winner.enabled=false"]
            subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
            print_profile(bench, count, json.loads(target.read_text()))


def print_profile(bench: str, trials: int, result: dict[str, Any]) -> None:
    """Prints the tables of one bench."""
    rows = sorted(result["spent"].items(), key=lambda row: -row[1][0])
    total, worked = (sum(row[place] for _, row in rows) for place in (0, 1))
    print(f"\n{bench}, {trials} trials, {torch.get_num_threads()} threads, ms a trial")
    print(f"  {'part':38} {'wall':>9} {'processor':>10} {'of wall':>8} {'calls':>8}")
    for label, (wall, processor, calls) in [*rows, ("all", (total, worked, trials))]:
        per_trial = f"{wall / trials * 1e3:9.2f} {processor / trials * 1e3:10.2f}"
        print(f"  {label:38} {per_trial} {wall / total:8.1%} {calls / trials:8.1f}")
    print(f"  before the first trial: {result['start']:.1f} s of this process")
    counted = result["kernels"]
    epoch, kernels, autograd = counted["epoch"], counted["all kernels"], counted["autograd"]
    print(f"  an epoch of the last trial, {epoch * 1e3:.1f} ms, as torch.profiler counts it:")
    python = epoch - kernels - autograd
    parts = {"kernels": kernels, "autograd": autograd, "python and the rest": python}
    for label, seconds in (parts | counted["kernels"]).items():
        print(f"    {label:36} {seconds * 1e3:9.2f} {seconds / epoch:19.1%}", flush=True)


if __name__ == "__main__":
    profile_here(*sys.argv[1:])
