"""Measures the cost of a tracker for a study: with MLflow, also one that is away, and without.

Runs whole commands in turn, all in one call, and prints the medians of their times. The server is
a real one on this host, with a SQLite store; while it is away its processes are stopped, so that
calls hang, which is worse than a connection that is refused. An epoch of the study waits, as for a
GPU; with --busy it trains a network on the processors, which the server needs too.

    python scripts/tracking.py              # needs: 12 minutes and the extra mlflow
    python scripts/tracking.py --busy       # needs: 12 quiet minutes
"""

import argparse
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
AWAY, AFTER = 30.0, 10.0  # seconds that the server is away, and of the command before that
EPOCH = 0.2  # seconds that one waits
# A minute of two workers, and the same work each time.
STUDY = (
    *("winner.enabled=false", "sampler=random", "pruner=none", "space=lr", "train.epochs=40"),
    *("launcher.workers=2", "model.hidden=[256,256]"),
)
WAITING = ("objective._target_=scripts.tracking.train", "objective.direction=maximize")


def train(config, run):  # type: ignore[no-untyped-def]
    """A loop whose epochs wait."""
    for epoch in run.epochs(config.train.epochs):
        time.sleep(EPOCH)
        run.report(accuracy=1 - 1 / (epoch + 2), train_loss=1 / (epoch + 1))
    return run.value


class Server:
    """MLflow's server below a folder, until the end of the `with`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> "Server":
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{port}"
        command = [
            *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
            *("--host", "127.0.0.1", "--port", str(port)),
            *("--backend-store-uri", f"sqlite:///{self.folder}/server.db"),
            *("--artifacts-destination", str(self.folder / "artifacts")),
        ]
        ours = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "server.log").open("wb") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=os.environ | ours, start_new_session=True
            )
        while self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                    return self
            except OSError:
                time.sleep(0.2)
        sys.exit((self.folder / "server.log").read_text())

    def __exit__(self, *_: object) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def be_away(self) -> None:
        """Does not reply for a while, in the middle of a command."""
        time.sleep(AFTER)
        os.killpg(self._process.pid, signal.SIGSTOP)
        time.sleep(AWAY)
        os.killpg(self._process.pid, signal.SIGCONT)


def run(folder: Path, *overrides: str) -> tuple[float, float]:
    """Runs the study from its start; returns its seconds, and those of the processors."""
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "studies.mnist", *STUDY, *overrides, f"run_dir={folder}"]
    env = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
    began, before = time.perf_counter(), used()
    subprocess.run(command, cwd=ROOT, env=env, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began, used() - before


def used() -> float:
    """Returns the seconds of processors that commands have used so far, with their workers."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def count_numbers(uri: str, name: str) -> int:
    """Counts the numbers of all learning curves in an experiment."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    found = client.search_runs([client.get_experiment_by_name(name).experiment_id])
    return sum(
        len(client.get_metric_history(each.info.run_id, metric))
        for each in found
        for metric in each.data.metrics
        if each.data.tags["studyloom.kind"] == "trial" and not metric.startswith("final/")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="how often each command is run")
    parser.add_argument("--trials", type=int, default=16, help="of the study")
    parser.add_argument("--busy", action="store_true", help="train a network in each epoch")
    options = parser.parse_args()
    took: dict[str, list[tuple[float, float]]] = {"plain": [], "tracked": [], "away": []}
    with tempfile.TemporaryDirectory() as temporary, Server(Path(temporary)) as server:
        folder = Path(temporary) / "run"
        plain = (f"study.trials={options.trials}", *(() if options.busy else WAITING))
        tracked = (*plain, "track=[mlflow]", f"track.mlflow.uri={server.uri}")
        for number in range(options.rounds):
            took["plain"].append(run(folder, *plain))
            took["tracked"].append(run(folder, *tracked, f"track.mlflow.experiment=t{number}"))
            away = threading.Thread(target=server.be_away)
            away.start()
            took["away"].append(run(folder, *tracked, f"track.mlflow.experiment=a{number}"))
            away.join()
            print({kind: times[-1] for kind, times in took.items()})
            counts = {
                name: count_numbers(server.uri, name) for name in (f"t{number}", f"a{number}")
            }
            print("numbers in MLflow:", counts, flush=True)
    first = [median(times) for times in zip(*took["plain"], strict=True)]
    for kind, times in took.items():
        wall, processors = (median(each) for each in zip(*times, strict=True))
        print(
            f"{kind:8} {wall:6.1f} s, {wall / first[0]:.3f} of plain; processors "
            f"{processors:6.1f} s, {processors / first[1]:.3f} of plain"
        )


if __name__ == "__main__":
    main()
