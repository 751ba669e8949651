"""Workers as tasks of a real SLURM of one node, whose two GPUs are fake.

A task that is queued again waits for 5 s.
"""

import os
import re
import subprocess
import tempfile
from pathlib import Path

import pytest
from commands import ROOT
from live_processes import until
from runs import STUDY, TRIALS, Run, device, kill

pytestmark = pytest.mark.nightly
SLURM = (
    *(override for override in STUDY if not override.startswith("launcher.")),
    *("launcher=slurm", "launcher.workers=2", "launcher.cpus=1"),
)


def ask(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=180).stdout


@pytest.fixture(scope="module", autouse=True)
def cluster(needs):
    if os.geteuid():
        pytest.skip("a SLURM of one's own needs root")
    needs("slurmctld", "slurmd", "sbatch", "munged")
    with (
        tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        Path(folder).chmod(0o755)
        patch.setenv("SLURM_CONF", f"{folder}/slurm.conf")
        try:
            subprocess.run([ROOT / "scripts" / "slurm", "up", folder], check=True, timeout=120)
            yield
        finally:
            subprocess.run([ROOT / "scripts" / "slurm", "down", folder], check=True, timeout=120)


class Job(Run):
    """A run whose command ends when it has submitted the job."""

    def submit(self, *overrides, **environment):
        out, err = self.start(*overrides, **environment).communicate(timeout=180)
        assert self.latest.returncode == 0, err
        self.number = re.search(r"scancel (\d+)", out)[1]
        return self.latest

    def at_work(self, **given):
        return super().at_work(starter=self.submit, **given)

    def until_stored(self, condition):
        """Waits for a condition. The command has ended by then, and the tables exist."""
        until(lambda: condition(self.stored()), 120, pause=0.05)

    def end(self):
        """Waits for the end of the job, and checks what must hold at the end of a command."""
        until(lambda: not ask("squeue", "--noheader", f"--user={os.getuid()}"), 180, pause=0.2)
        super().end(
            subprocess.Popen(["true"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True), 0
        )

    def check_success(self, printed):
        """Nothing: the command has ended long before its job, whose study each test checks."""

    def devices(self):
        """The GPU of each worker: that of the process that runs trials, and of its parent."""
        python = (
            pid
            for pid in self.workers()
            if Path(f"/proc/{pid}/comm").read_text().startswith("python")
        )
        return sorted({*map(device, python)})


@pytest.fixture
def job(tmp_path, postgres_url):
    job = Job(tmp_path / "run", postgres_url, SLURM)
    yield job
    subprocess.run(["scancel", "--quiet", f"--user={os.getuid()}"])
    kill(job.processes())


def test_two_tasks_use_two_gpus_and_log_below_run_dir(job, undisturbed):
    def look():
        assert job.devices() == ["0", "1"]

    job.at_work(meanwhile=look)
    job.end()
    job.check(undisturbed)
    logs = sorted(path.name for path in job.folder.glob("logs/*.log"))
    assert logs == [f"slurm-{job.number}_0.log", f"slurm-{job.number}_1.log"]
    assert f"{TRIALS} of {TRIALS} trials" in job.logs()


def test_a_task_near_its_time_limit_releases_its_trial_and_is_requeued(job, undisturbed):
    def signal_tasks():
        for task in range(2):
            ask("scancel", "--batch", "--signal=USR2", f"{job.number}_{task}")

    job.at_work(meanwhile=signal_tasks)
    until(lambda: job.stored().ledger.counts()["held"] == 0, pause=0.02)
    again = job.stored().ledger.counts()["done"]
    job.end()
    assert again < TRIALS
    assert "Restarts=1" in ask("scontrol", "show", "job", f"{job.number}_1")
    job.check(undisturbed)


def test_a_canceled_job_releases_its_trials_and_the_command_resumes(job, undisturbed):
    job.at_work(meanwhile=lambda: ask("scancel", job.number))
    job.end()
    assert job.stored().ledger.counts()["held"] == 0
    assert job.stored().ledger.counts()["done"] < TRIALS
    job.submit()
    job.end()
    job.check(undisturbed)
