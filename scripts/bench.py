"""Measures speed against the plain way, in one call, since absolute times differ between machines.

    python scripts/bench.py example          # studies.fashion against scripts/plain.py; 12 minutes
    python scripts/bench.py example --processes 2    # the same in two processes on SQLite
    python scripts/bench.py tutorial         # 784-128-10 on all of MNIST; 5 minutes
    python scripts/bench.py answer           # studies.mnist to its tested winner; 15 minutes
    python scripts/bench.py answer --study fashion --trials 100    # or studies.fashion
    python scripts/bench.py overhead         # storage and sampling of a trial; 3 minutes
    python scripts/bench.py cluster          # 64, 256 and 1,000 workers that sleep; 25 minutes
    python scripts/bench.py growth           # 100,000 finished trials; 15 minutes
    python scripts/bench.py scale            # 1 and 2 workers, then 32 that sleep; 4 minutes
    python scripts/bench.py loader           # an image folder with two loaders; 2 minutes
    python scripts/bench.py small            # 30 small trials, 2,000 trivial ones; 10 minutes
    python scripts/bench.py start            # commands until they begin or print; 2 minutes
    python scripts/bench.py kills            # a search with and without 20 kills; 5 minutes
    python scripts/bench.py search           # methods of search, replayed; 20 minutes
    python scripts/bench.py search --on lcbench --only methods --peers smac optuna    # and others
    python scripts/bench.py pareto           # two objectives with ASHA, replayed; 5 minutes
    python scripts/bench.py honesty          # results against the truth, 430 studies; 20 minutes
    python scripts/bench.py record           # makes those curves; an hour

Both ways run in turn, as whole processes on the same data. `example` and `tutorial` need
`STUDYLOOM_DATA`, the folder with `mnist/` and `fashion-mnist/`; `overhead`, `cluster`, `growth`
and `scale` need the extra `embedded`. `--repeats` is the number of times that each way runs.
The documentation has the results, under Benchmarks. `search` trains nothing: it replays each method
with 10 seeds (`--seeds`) on surrogates of LCBench in `STUDYLOOM_DATA`, on recorded curves, and on
the tables that the extra `dev` brings, under the real worker loop in simulated time; then
`study.stop=improvement` on the tables (`--only` for some of it). It prints how much lower the
regret of each method is than that of `--against`, in pairs of seeds. `--peers` are other
optimizers, which it installs into separate environments. With `--results FOLDER` an interrupted
run continues, and a later one runs only what is new: results of the product are kept for each
state of src/ and conf/, and PYTHONPATH=CHECKOUT/src measures another checkout.
"""

import argparse
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import torch
from database.cluster import cluster
from database.growth import growth
from database.kills import kills
from database.overhead import overhead
from database.workers import scale
from honesty.measuring import honesty
from honesty.studies import TRIALS
from search.comparison import Setting
from search.fronts import compare_fronts
from search.measuring import PARTS, measure
from search.methods import FORMER, METHODS, USUAL
from search.peers import REQUIRED
from search.recording import record
from search.tables import FAMILIES
from small import small
from starting import measure_start
from training.against_plain import answer, example, tutorial
from training.loading import loader


def machine() -> str:
    """Describes this machine in one line: processor, cores, PyTorch and load."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    load = os.getloadavg()[0]
    processor = " ".join(names) or platform.machine()
    return f"{processor}, {os.cpu_count()} cores, torch {torch.__version__}, load {load:.1f}"


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
        lambda a: example(a.repeats or 3, a.processes or 1, a.trials or 100), {"trials": 2}
    ),
    "tutorial": Bench(lambda a: tutorial(a.repeats or 3, a.epochs), {"epochs": 1}),
    "answer": Bench(
        lambda a: answer(a.repeats or 3, a.trials or 40, a.before or None, a.study),
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
    "small": Bench(
        lambda a: small(a.repeats or 3, min(a.trials or 30, 30), a.trials or 2000), {"trials": 8}
    ),
    "start": Bench(lambda a: measure_start(a.repeats or 3, a.before or None), {"before": ""}),
    "kills": Bench(lambda a: kills(a.trials or 60), {"trials": 3}),
    "search": Bench(
        lambda a: measure(
            a.only,
            a.on,
            a.methods,
            a.seeds or a.repeats or 10,
            Setting(a.workers, a.trials, a.training_epochs, a.tasks),
            a.peers,
            a.against,
            a.results,
            a.environments.resolve(),
            a.processes,
        ),
    ),
    "pareto": Bench(lambda a: compare_fronts(a.repeats or 20)),
    "honesty": Bench(
        lambda a: honesty(a.sizes, a.trials or TRIALS, a.results), {"sizes": [1, 1, 1, 1]}
    ),
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
    parser.add_argument("--repeats", type=int, help="3; of search 10 seeds, of pareto 20")
    parser.add_argument("--processes", type=int, help="of example 1; of search one a core")
    parser.add_argument("--trials", type=int, help="of a study")
    parser.add_argument("--epochs", type=int, default=10, help="of the tutorial")
    parser.add_argument("--study", choices=("mnist", "fashion"), default="mnist", help="of answer")
    parser.add_argument("--before", help="a commit to compare with, of answer and start")
    parser.add_argument("--on", nargs="+", choices=FAMILIES, help="families of tasks of search")
    parser.add_argument("--tasks", choices=("test", "tune"), default="test", help="of LCBench")
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=PARTS, help="some parts of search"
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=USUAL, help="of search")
    parser.add_argument(
        "--peers", nargs="*", choices=REQUIRED, default=["optuna"], help="other optimizers"
    )
    parser.add_argument("--against", default=FORMER, help="the method that others are compared to")
    parser.add_argument("--seeds", type=int, help="of search: searches of each method and task")
    parser.add_argument("--results", type=Path, help="a folder that keeps what is found")
    parser.add_argument(
        "--environments", type=Path, default=Path("build/peers"), help="a folder for those of peers"
    )
    parser.add_argument("--workers", type=int, default=1, help="simulated, of search: methods")
    parser.add_argument("--training-epochs", type=int, help="of a trial on LCBench, not 27")
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=int,
        help="workers of cluster; finished trials of overhead and growth, and for growth those of "
        "one worker; sleepers of scale; images of loader; studies of each kind of honesty",
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
