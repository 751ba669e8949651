"""Workers in a Ray cluster on this host: its GPUs are fake; actors, nodes and deaths are real."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from commands import CANARY, environment
from live_processes import linux, until
from runs import STUDY, Run, device, kill

pytestmark = [pytest.mark.nightly, linux]
RAY = (
    *(override for override in STUDY if not override.startswith("launcher.")),
    "launcher=ray",
    "launcher.workers=2",
)


@pytest.fixture(autouse=True)
def needs_ray():
    if importlib.util.find_spec("ray") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("ray is missing")


class Cluster:
    def __init__(self, folder):
        script = Path(__file__).with_name("cluster.py")
        env = environment(RAY_USAGE_STATS_ENABLED="0", RAY_TMPDIR=str(folder))
        self.process = subprocess.Popen(
            [sys.executable, script],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            bufsize=1,
            start_new_session=True,
        )
        self.address = self.process.stdout.readline().strip()
        assert re.fullmatch(r"[\d.]+:\d+", self.address), self.address

    def tell(self, word):
        self.process.stdin.write(f"{word}\n")
        assert self.process.stdout.readline() == "done\n"

    def end(self):
        self.process.communicate()


@pytest.fixture(scope="module")
def cluster():
    # A short path: those of Ray's sockets have at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        cluster = Cluster(folder)
        yield cluster
        cluster.end()
        files = subprocess.run(
            ["grep", "-rlF", "--exclude-dir=working_dir_files", CANARY, folder],
            capture_output=True,
            text=True,
        ).stdout
        assert files == "", f"I8: {files}"


@pytest.fixture
def run(tmp_path, postgres_url, cluster):
    """A study on a cluster with two fake GPUs, on one disk with it."""
    run = Run(tmp_path / "run", postgres_url, (*RAY, f"launcher.address={cluster.address}"))
    yield run
    kill(run.processes())  # where a test has failed


def parent(pid):
    return int(re.search(r"^PPid:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.M)[1])


def test_each_worker_has_one_gpu_and_its_log_is_below_run_dir(run, undisturbed):
    def look():
        assert sorted(map(device, run.workers())) == ["0", "1"]

    run.end(run.at_work(meanwhile=look), 0)
    run.check(undisturbed)
    assert "trial" in run.logs()
    assert len([*run.folder.glob("logs/*-worker?.log")]) == 2


def test_a_killed_actor_comes_back_and_the_study_has_n_trials(run, undisturbed):
    def kill_an_actor():
        worker = run.workers()[0]
        actor = parent(worker)
        assert b"ray::" in Path(f"/proc/{actor}/cmdline").read_bytes()
        os.kill(actor, signal.SIGKILL)
        until(lambda: worker not in run.workers(), 15)  # with all that it has started
        until(lambda: "actor" in run.logs(), 60)  # why it was lost

    process = run.at_work(meanwhile=kill_an_actor)
    printed = run.end(process, 0)
    assert "a worker ended with its actor" in printed
    run.check(undisturbed)


def test_a_node_removed_in_mid_study_costs_nothing(run, cluster, undisturbed):
    def remove_a_node():
        cluster.tell("remove")
        until(lambda: "actor" in run.logs(), 60)  # why it was lost

    cluster.tell("add")
    process = run.at_work("launcher.num_cpus=2", meanwhile=remove_a_node)  # one for each node
    printed = run.end(process, 0)
    assert "a worker ended with its actor" in printed
    run.check(undisturbed)


# A cluster of the command's own


@pytest.fixture
def alone(tmp_path):
    folder = tmp_path / "run"
    run = Run(folder, f"sqlite:///{folder}/study.db", RAY)
    yield run
    kill(run.processes())


def test_without_an_address_ray_runs_only_here_and_ends_with_the_command(alone, undisturbed):
    folders = []

    def look():
        pids = alone.processes()  # one of them is the command's
        folders.extend(path for pid in pids for path in Path("/tmp").glob(f"studyloom-ray-{pid}-*"))
        commands = "".join(Path(f"/proc/{pid}/cmdline").read_text() for pid in pids)
        address = re.search(r"--gcs-address=([\d.]+:\d+)", commands)[1]
        command = [sys.executable, "-m", "ray.scripts.scripts", "status", f"--address={address}"]
        options = {"env": environment(), "capture_output": True, "text": True, "timeout": 180}
        stranger = subprocess.run(command, **options)
        assert stranger.returncode != 0
        assert "oken" in stranger.stdout + stranger.stderr  # it has none

    alone.end(alone.at_work(meanwhile=look), 0)
    alone.check(undisturbed)
    (folder,) = folders
    assert not folder.exists()


def test_ctrl_c_that_also_reaches_ray_releases_the_trials(alone, undisturbed):
    def start(*overrides, **environment):
        return alone.start(*overrides, within=["setsid"], **environment)

    def interrupt():
        os.killpg(alone.latest.pid, signal.SIGINT)

    alone.end(alone.at_work(starter=start, meanwhile=interrupt), 130)
    assert alone.stored().ledger.counts()["held"] == 0
    alone.go_on(undisturbed)


def test_a_killed_command_takes_its_cluster_with_it(alone, undisturbed):
    alone.at_work(meanwhile=lambda: alone.latest.kill()).communicate()
    alone.until_gone(120)  # Ray looks for itself whether its driver lives
    alone.go_on(undisturbed)
