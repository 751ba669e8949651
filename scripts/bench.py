"""Measures speed against the plain way, in one call, since absolute times differ between machines.

    python scripts/bench.py example          # studies.fashion against scripts/plain.py; 12 minutes
    python scripts/bench.py example --processes 2    # the same in two processes on SQLite
    python scripts/bench.py tutorial         # 784-128-10 on all of MNIST; 5 minutes
    python scripts/bench.py answer           # studies.mnist to its tested winner; 15 minutes
    python scripts/bench.py overhead         # storage and sampling of a trial; 3 minutes
    python scripts/bench.py cluster          # 64, 256 and 1 000 workers that sleep; 25 minutes
    python scripts/bench.py growth           # 100 000 finished trials; 15 minutes
    python scripts/bench.py scale            # 1 and 2 workers, then 32 that sleep; 4 minutes
    python scripts/bench.py loader           # an image folder with two loaders; 2 minutes
    python scripts/bench.py start            # commands until they begin, and looks; 2 minutes
    python scripts/bench.py kills            # a search with and without 20 kills; 5 minutes
    python scripts/bench.py profile          # where the time of a trial goes; 2 minutes
    python scripts/bench.py memory           # of 4 workers that share a training part; 2 minutes
    python scripts/bench.py search           # methods of search, replayed on curves; 10 minutes
    python scripts/bench.py pareto           # two objectives with promotion, replayed; 5 minutes
    python scripts/bench.py record           # makes those curves; an hour

Both ways run in turn, as whole processes on the same data. `example` and `tutorial` need
`STUDYLOOM_DATA`, the folder with `mnist/` and `fashion-mnist/`; `overhead` and `scale` need the
extra `embedded`. `--repeats` is the number of times that each way runs. scripts/README.md has the
results. `search` trains nothing: it replays each method with 20 seeds (`--repeats`) on recorded
curves and on the tables that the extra `dev` brings, under the real worker loop in simulated time;
then what `winner.race`, `study.from=auto` and `study.stop=regret` gain (`--only` for some of it).
"""

import argparse
import functools
import gzip
import json
import math
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import optuna
import torch
from database.cluster import cluster
from database.growth import growth
from database.overhead import overhead
from database.toy import Bare, Tiny, postgres, show, work
from PIL import Image
from profiling import profile_benches
from search.fronts import compare_fronts
from search.measuring import FAMILIES, PARTS, REPORTED, measure
from search.recording import record
from starting import checkout, measure_start
from torch import nn

from studyloom.data import Datasets
from studyloom.data.idx import SOURCES
from studyloom.data.training_data import TrainingData
from studyloom.processes import descendants
from studyloom.question.objective import NetworkObjective
from studyloom.study.opening import create_study, open_study
from studyloom.study.stored_study import StoredStudy
from studyloom.training.job import Job
from studyloom.training.trainer import Training

ROOT = Path(__file__).resolve().parent.parent
PLAIN = ROOT / "scripts" / "plain.py"
COMPLETE, PRUNED = optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED


def machine() -> str:
    """Describes this machine in one line: processor, cores, PyTorch and load."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    load = os.getloadavg()[0]
    processor = " ".join(names) or platform.machine()
    return f"{processor}, {os.cpu_count()} cores, torch {torch.__version__}, load {load:.1f}"


def run(*command: str, cwd: Path = ROOT, **environment: str) -> tuple[float, str]:
    """Runs Python with some arguments; returns the seconds it took, and its output."""
    env = os.environ | environment
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=env, stdout=subprocess.PIPE, text=True, check=True
    )
    return time.monotonic() - began, done.stdout


@contextmanager
def unpacked(name: str) -> Iterator[str]:
    """Unpacks a data set into a folder in which torchvision finds it."""
    source = SOURCES[name]
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder, source.torchvision, "raw")
        raw.mkdir(parents=True)
        for path in Path(os.environ["STUDYLOOM_DATA"], source.folder).iterdir():
            open_packed = gzip.open if path.suffix == ".gz" else open
            target = raw / path.name.removesuffix(".gz")
            with open_packed(path, "rb") as packed, open(target, "wb") as file:
                shutil.copyfileobj(packed, file)
        yield folder


def page(name: str, folder: str, *overrides: str, **environment: str) -> tuple[float, StoredStudy]:
    """Runs the page of a study without its winner; returns the seconds it took, and the study."""
    path = Path(folder, "run")
    shutil.rmtree(path, ignore_errors=True)
    arguments = (f"run_dir={path}", "winner.enabled=false", *overrides)
    seconds, _ = run("-m", f"studies.{name}", *arguments, **environment)
    study = next((o.partition("=")[2] for o in overrides if o.startswith("study.name=")), name)
    return seconds, open_study(f"sqlite:///{path}/study.db", study)


def example(repeats: int, processes: int, trials: int) -> None:
    """A search that the median prunes: the plain loop in memory, or in two processes on SQLite."""
    plain, ours, plain_best, our_best = [], [], [], []
    with unpacked("fashion_mnist") as root, tempfile.TemporaryDirectory() as folder:
        for seed in range(repeats):
            if processes == 1:
                seconds, printed = run(str(PLAIN), "example", root, str(seed), str(trials))
                value = float(printed)
            else:
                seconds, value = plain_processes(root, folder, seed, processes, trials)
            plain.append(seconds)
            plain_best.append(value)
            overrides = (f"study.seed={seed}", f"study.trials={trials}")
            seconds, stored = page("fashion", folder, *overrides, f"launcher.workers={processes}")
            ours.append(seconds)
            our_best.append(stored.optuna.best_value)
            stored.close()
            print(
                f"  seed {seed}: plain {plain[-1]:.1f} s {plain_best[-1]:.4f}, "
                f"ours {ours[-1]:.1f} s {our_best[-1]:.4f}",
                flush=True,
            )
    show(f"plain, {processes} processes", plain)
    show(f"ours, {processes} workers", ours)
    print(
        f"  ratio {median(plain) / median(ours):.1f}; "
        f"best, mean: plain {fmean(plain_best):.4f}, ours {fmean(our_best):.4f}"
    )


def plain_processes(
    root: str, folder: str, seed: int, processes: int, trials: int
) -> tuple[float, float]:
    """Runs the plain example in several processes on one SQLite file; seconds, and best value."""
    path = Path(folder, "plain.db")
    path.unlink(missing_ok=True)
    url = f"sqlite:///{path}"
    optuna.create_study(study_name="plain", storage=url, direction="maximize")
    began = time.monotonic()
    arguments = ("example", root, str(seed), str(trials // processes), url)
    command = [sys.executable, str(PLAIN), *arguments]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL) for _ in range(processes)
    ]
    assert [process.wait() for process in running] == [0] * processes
    return time.monotonic() - began, optuna.load_study(study_name="plain", storage=url).best_value


def answer(repeats: int, trials: int, before: str | None) -> None:
    """The whole of studies.mnist: the plain loop, this checkout, and an earlier commit of it."""
    with tempfile.TemporaryDirectory() as folder, checkout(before, Path(folder)) as earlier:
        ways = {"plain": ROOT, "ours": ROOT}
        if earlier is not None:
            ways = {"plain": ROOT, f"ours at {before}": earlier, "ours": ROOT}
        took: dict[str, list[float]] = {way: [] for way in ways}
        tested: dict[str, list[float]] = {way: [] for way in ways}
        for seed in range(repeats):
            for way, root in ways.items():
                run_dir = Path(folder, "run")
                seconds, accuracy = answered(way == "plain", root, run_dir, seed, trials)
                took[way].append(seconds)
                tested[way].append(accuracy)
                line = f"  seed {seed}: {way:18} {seconds:6.1f} s, tested {accuracy:.4f}"
                print(line, flush=True)
    for way, seconds in took.items():
        show(way, seconds)
        faster = median(seconds) / median(took["ours"])
        gains = [a - b for a, b in zip(tested["ours"], tested[way], strict=True)]
        spread = f"{min(gains):+.4f} … {max(gains):+.4f}"
        print(
            f"    ratio {faster:.2f}; tested, mean {fmean(tested[way]):.4f}; "
            f"ours less this, paired {fmean(gains):+.4f}, {spread}"
        )


def answered(plain: bool, root: Path, run_dir: Path, seed: int, trials: int) -> tuple[float, float]:
    """Runs one way to its answer; returns the seconds it took, and the accuracy of the winner."""
    if plain:
        seconds, printed = run(str(PLAIN), "answer", "-", str(seed), str(trials))
        return seconds, float(printed)
    shutil.rmtree(run_dir, ignore_errors=True)
    command = ("-m", "studies.mnist", f"run_dir={run_dir}", f"study.seed={seed}")
    command += (f"study.trials={trials}",)
    seconds, _ = run(*command, cwd=root, PYTHONPATH=str(root / "src"))
    written = json.loads((run_dir / "winner.json").read_text())
    return seconds, written["test"]["winner"]["mean"]


def tutorial(repeats: int, epochs: int) -> None:
    """The tutorial network: the same 55 000 images to train on, and 5 000 to validate."""
    plain, ours, plain_accuracy, our_accuracy = [], [], [], []
    overrides = ("study.name=plain", "data=mnist", "space=none", "model.hidden=[128]")
    overrides += ("optimizer=adam", "scheduler=constant", "train.batch_size=100")
    overrides += (f"train.epochs={epochs}",)
    with unpacked("mnist") as root, tempfile.TemporaryDirectory() as folder:
        for seed in range(repeats):
            seconds, printed = run(str(PLAIN), "tutorial", root, str(seed), str(epochs))
            plain.append(seconds)
            plain_accuracy.append(float(printed))
            seconds, stored = page("mnist", folder, *overrides, f"study.seed={seed}")
            ours.append(seconds)
            our_accuracy.append(stored.optuna.best_value)
            stored.close()
    show("plain", plain)
    show("ours", ours)
    print(
        f"  ratio {median(plain) / median(ours):.1f}; accuracy, mean: "
        f"plain {fmean(plain_accuracy):.4f}, ours {fmean(our_accuracy):.4f}"
    )


def spans(stored: StoredStudy) -> float:
    """Returns the seconds from the start of the first trial to the end of the last."""
    trials = stored.trials()
    ends = [trial.datetime_complete for trial in trials if trial.datetime_complete]
    return (max(ends) - min(t.datetime_start for t in trials if t.datetime_start)).total_seconds()


def scale(repeats: int, trials: int, sleepers: int) -> None:
    """Trials with 1 and 2 one-thread workers, first start to last end; then 32 sleepers."""
    search = ("sampler=random", "pruner=none", "space=none", "study.seed=0")
    search += (f"study.trials={trials}",)
    search += ("+space.train.batch_size.choice=[64,65,66,67]", "model=mlp", "train.epochs=12")
    times: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(repeats):
            for workers, took in times.items():
                number = f"launcher.workers={workers}"
                _, stored = page("mnist", folder, *search, number, OMP_NUM_THREADS="1")
                took.append(spans(stored))
                stored.close()
        for workers, took in times.items():
            show(f"{workers} workers", took)
        print(f"  two are {median(times[1]) / median(times[2]):.2f} times one")
        sleep(folder, sleepers)


NAP, NAPS = 0.5, 12


class Asleep(Bare):
    """Trials that sleep for half a second."""

    def sampler(self, number: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.RandomSampler(seed=number)

    def pruner(self) -> optuna.pruners.BasePruner:
        return optuna.pruners.NopPruner()

    def make_objective(
        self, point: Any, number: int, data: TrainingData, attempt: Any
    ) -> NetworkObjective:
        (train, valid) = data.folds[0]
        sgd = functools.partial(torch.optim.SGD, lr=0.1)
        loss = nn.CrossEntropyLoss()

        def net(shape: Any, outputs: int) -> nn.Module:
            time.sleep(NAP)
            return Tiny(shape, outputs)

        job = Job(net, sgd, lambda _: 1.0, loss, train, valid, 1, 4, number)
        return NetworkObjective(Training([job], data.split))


def sleeper(url: str, folder: str, trials: int, barrier: Any) -> None:
    """Works, once all others are ready."""
    torch.set_num_threads(1)
    stored = open_study(url, "bench")
    barrier.wait()
    work(Asleep(), stored, folder, trials)


def sleep(folder: str, sleepers: int) -> None:
    """Measures how much of their time some workers sleep, which is all that their trials do."""
    context = torch.multiprocessing.get_context("spawn")
    barrier, trials = context.Barrier(sleepers), sleepers * NAPS
    with postgres(folder) as new_database:
        url = new_database()
        stored = create_study(url, "bench", {"bench": "sleep"}, trials)
        arguments = (url, folder, trials, barrier)
        workers = [context.Process(target=sleeper, args=arguments) for _ in range(sleepers)]
        for process in workers:
            process.start()
        for process in workers:
            process.join()
            assert process.exitcode == 0
        took = spans(stored)
        stored.close()
    print(
        f"  {sleepers} sleeping workers, {trials} trials of {NAP} s: {took:.2f} s, "
        f"efficiency {NAPS * NAP / took:.2f}"
    )


class Pictures(torch.utils.data.Dataset[Any]):
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


def loader(repeats: int, pictures: int) -> None:
    """Three epochs on pictures in a folder: the plain loop with DataLoaders, and Datasets."""
    torch.set_num_threads(1)
    ways = {"plain, a DataLoader": plain_loader, "ours, Datasets": our_loader}
    took: dict[str, list[tuple[float, float]]] = {label: [] for label in ways}
    with tempfile.TemporaryDirectory() as folder:
        random_pixels = np.random.default_rng(0)
        for number in range(pictures):
            path = Path(folder, str(number % 10), f"{number}.png")
            path.parent.mkdir(exist_ok=True)
            small = random_pixels.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(small).resize((64, 64)).save(path)
        for repeat in range(repeats + 1):  # the first warms the page cache
            # Each goes first in turn: it runs in what the other has left.
            for label in sorted(ways, reverse=bool(repeat % 2)):
                began, worked = time.perf_counter(), processor_time()
                ways[label](folder, pictures * 4 // 5)
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
    """The plain loop: a DataLoader to train on the first pictures, and one to evaluate."""
    train, valid = (
        torch.utils.data.Subset(Pictures(folder, shift), part)
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
    data = {"train": Pictures(folder, True), "evaluate": Pictures(folder, False)}
    examples = Datasets(**data, validation=count // 4, num_workers=2).train()
    train, valid = torch.arange(count), torch.arange(count, count * 5 // 4)
    loss = nn.CrossEntropyLoss()
    job = Job(convolutions, torch.optim.Adam, lambda _: 1.0, loss, train, valid, 3, 64, 0)
    for _ in Training([job], examples):
        pass


def kills(trials: int) -> None:
    """A search undisturbed, and with a kill every third trial; values must be the same."""
    times, values = [], []
    overrides = (f"study.trials={trials}", "sampler=random", "pruner=none", "winner.enabled=false")
    # One trial may be hit again and again, and must not be given up for it.
    overrides += ("study.max_attempts=99", "launcher.workers=2")
    for deaths in (0, trials // 3):
        with tempfile.TemporaryDirectory() as folder:
            url = f"sqlite:///{folder}/run/study.db"
            command = [sys.executable, "-m", "studies.mnist", *overrides, f"run_dir={folder}/run"]
            quiet = subprocess.DEVNULL
            began = time.monotonic()
            process = subprocess.Popen(command, cwd=ROOT, stdout=quiet, stderr=quiet)
            killed = storm(process, url, trials, deaths)
            assert process.wait() == 0
            times.append(time.monotonic() - began)
            found = open_study(url, "mnist").trials()
            values.append([(trial.number, trial.params, trial.value) for trial in found])
            print(f"{len(found)} trials, {killed} kills: {times[-1]:.0f} s", flush=True)
    verdict = "the same" if values[0] == values[1] else "DIFFERENT"
    print(f"ratio {times[1] / times[0]:.2f}; values {verdict}")


def storm(process: subprocess.Popen[bytes], url: str, trials: int, deaths: int) -> int:
    """Kills a worker at a random moment after every third trial; returns the number killed."""
    fate, stored, killed = random.Random(0), None, 0
    while process.poll() is None and killed < deaths:
        time.sleep(0.1)
        try:
            stored = stored or open_study(url, "mnist")
        except ValueError:
            continue  # the study is not there yet
        held = stored.ledger.held()
        if held and stored.ledger.counts()["done"] >= killed * trials // (deaths + 1):
            time.sleep(fate.random())
            try:
                os.kill(int(fate.choice(held).owner.rpartition(":")[2]), signal.SIGKILL)
                killed += 1
            except ProcessLookupError:
                continue
    return killed


SHAPE, WORKERS = (3, 32, 32), 4
LOAD = """
import os, numpy, torch
def load(part):
    file = numpy.load(os.environ["BENCH_FILE"], mmap_mode="r")
    pixels = file if os.environ["BENCH_KIND"] == "map" else numpy.array(file)
    return (pixels if part == "train" else pixels[:100]), torch.arange(len(pixels)) % 10
"""


def memory(size: int) -> None:
    """What a command and 4 workers take, of bytes that they are trained on.

    Args:
        size: of an array and of a map; of another array it is a hundredth.
    """
    overrides = (
        "study.trials=4",
        "sampler=random",
        "pruner=none",
        "space=lr",
        "winner.enabled=false",
    )
    overrides += ("model.hidden=[64]", "train.batch_size=100", "train.samples_per_epoch=200")
    overrides += ("data._target_=studyloom.data.Loaded", "~data.transform", "data.validation=100")
    overrides += ("+data.load={_target_: bench_load.load, _partial_: true}", "train.epochs=400")
    overrides += (f"launcher.workers={WORKERS}",)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "bench_load.py").write_text(LOAD)
        for kind, count in (("array", size // 100), ("array", size), ("map", size)):
            file = Path(folder, "pixels.npy")
            rows = np.random.default_rng(0).integers(
                0, 256, (count // math.prod(SHAPE), *SHAPE), np.uint8
            )
            np.save(file, rows)
            del rows
            env = {"BENCH_FILE": str(file), "BENCH_KIND": kind, "PYTHONPATH": folder}
            label = f"{count / 1e6:g} MB, {kind}"
            run_dir = Path(folder, "run")
            shutil.rmtree(run_dir, ignore_errors=True)
            command = [sys.executable, "-m", "studies.mnist", *overrides, f"run_dir={run_dir}"]
            process = subprocess.Popen(
                command, cwd=ROOT, env=os.environ | env, stdout=subprocess.DEVNULL
            )
            loading, training = weigh(process, f"sqlite:///{run_dir}/study.db")
            assert process.wait() == 0
            show(f"{label}: {WORKERS} at work", training, "GB")
            show(f"{label}: before", loading, "GB")


def weigh(process: subprocess.Popen[bytes], url: str) -> tuple[list[float], list[float]]:
    """Weighs a command with all processes below it until it ends, twice a second.

    Returns:
        the proportional set sizes in gigabytes: before all workers had a trial, and while they had.
    """
    stored, before, at_work = None, [], []
    while process.poll() is None:
        time.sleep(0.5)
        size = 0.0
        for pid in [process.pid, *descendants(process.pid)]:
            with suppress(OSError, StopIteration):  # it has ended
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                size += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        with suppress(ValueError):  # the study is not there yet
            stored = stored or open_study(url, "mnist")
        if stored is not None and len(stored.ledger.held()) == WORKERS:
            at_work.append(size * 1024 / 1e9)
        elif not at_work:
            before.append(size * 1024 / 1e9)
    return before, at_work


@dataclass(frozen=True)
class Bench:
    """A measurement.

    Args:
        measure: runs it, as the arguments of the command line say.
        smallest: the arguments with which it is over soonest.
    """

    measure: Callable[[argparse.Namespace], None]
    smallest: dict[str, Any] = field(default_factory=dict)


BENCHES = {
    "example": Bench(
        lambda a: example(a.repeats or 3, a.processes, a.trials or 100), {"trials": 2}
    ),
    "tutorial": Bench(lambda a: tutorial(a.repeats or 3, a.epochs), {"epochs": 1}),
    "answer": Bench(
        lambda a: answer(a.repeats or 3, a.trials or 40, a.before or None),
        {"trials": 2, "before": ""},
    ),
    "overhead": Bench(
        lambda a: overhead(a.repeats or 3, a.sizes or (0, 1000, 5000)), {"sizes": [0, 20]}
    ),
    "cluster": Bench(
        lambda a: cluster(a.sizes or (64, 256, 1000), a.repeats or 3, a.factor),
        {"sizes": [2], "factor": 60.0},
    ),
    "growth": Bench(
        lambda a: growth(*(a.sizes or (1_000, 100_000, 20_000))), {"sizes": [10, 20, 20]}
    ),
    "scale": Bench(
        lambda a: scale(a.repeats or 3, a.trials or 40, *(a.sizes or (32,))),
        {"trials": 2, "sizes": [2]},
    ),
    "loader": Bench(lambda a: loader(a.repeats or 3, *(a.sizes or (4000,))), {"sizes": [100]}),
    "start": Bench(lambda a: measure_start(a.repeats or 3, a.before or None), {"before": ""}),
    "kills": Bench(lambda a: kills(a.trials or 60), {"trials": 3}),
    "profile": Bench(lambda a: profile_benches(a.trials or 100), {"trials": 2}),
    "memory": Bench(lambda a: memory(*(a.sizes or (10**9,))), {"sizes": [10**8]}),
    "search": Bench(
        lambda a: measure(a.only, a.on or REPORTED, a.repeats or 20, a.workers, a.budget),
        {"budget": 27},
    ),
    "pareto": Bench(lambda a: compare_fronts(a.repeats or 20)),
    "record": Bench(lambda a: record(a.run_dir.resolve(), a.trials), {"trials": 1}),
}


def main() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("what", choices=BENCHES)
    parser.add_argument(
        "--smallest", action="store_true", help="see that it runs: the figures mean nothing"
    )
    parser.add_argument("--repeats", type=int, help="3, and 20 seeds of search and pareto")
    parser.add_argument("--processes", type=int, default=1, help="of the example")
    parser.add_argument("--trials", type=int, help="of a study")
    parser.add_argument("--epochs", type=int, default=10, help="of the tutorial")
    parser.add_argument(
        "--before", default="7e971e2", help="an earlier commit, of answer and start"
    )
    parser.add_argument("--on", nargs="+", choices=FAMILIES, help="families of tasks of search")
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=PARTS, help="some parts of search"
    )
    parser.add_argument("--workers", type=int, default=1, help="simulated, of search: schedules")
    parser.add_argument("--budget", type=int, help="epochs or trials of search: schedules")
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=int,
        help="workers of cluster; finished trials of overhead and growth, and for growth those of "
        "one worker; sleepers of scale; pictures of loader; bytes of memory",
    )
    parser.add_argument("--factor", type=float, help="by which the 60 s of cluster are divided")
    parser.add_argument("--run-dir", type=Path, help="of record", default=Path("runs/curves"))
    arguments = parser.parse_args()
    bench = BENCHES[arguments.what]
    if arguments.smallest:
        vars(arguments).update({"repeats": 1} | bench.smallest)
    print(machine(), flush=True)
    bench.measure(arguments)


if __name__ == "__main__":
    main()
