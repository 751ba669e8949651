"""Workers as the tasks of a SLURM job array, which keeps running after this command."""

import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from studyloom.errors import BrokenProcess, LaunchError
from studyloom.worker.local import check_count
from studyloom.worker.stopping import Stop
from studyloom.worker.supervisor import RESTARTS
from studyloom.worker.task import Launcher, Task

SECONDS_BEFORE_LIMIT = 120  # the time limit, when SLURM has a worker release its trial
SPECIAL_CHARACTERS = " \t'\"#\\"  # with them, sbatch reads a value only in quotes
BODY = """\
cd {folder} || exit
export OMP_NUM_THREADS=${{SLURM_CPUS_PER_TASK:-1}}

# On USR2 the worker releases its trial at the end of the epoch, and the task is queued again.
# A worker that another signal ends is started again, {restarts} times; one that a trial has left
# unable to use its GPU (exit code {broken}) whenever that happens, since the trial has ended.
again=
lives={lives}
trap 'again=yes; [ "$!" ] && kill -TERM "$!"' USR2
while [ "$lives" -gt 0 ]; do
    {command} &
    worker=$!
    [ "$again" ] && kill -TERM "$worker" # the signal came before there was this worker
    wait "$worker"
    code=$?
    if [ "$again" ]; then # the signal has ended the wait
        wait "$worker"
        code=$?
        # The index is needed: the job id of the last task is that of the whole array too.
        [ "$code" = 143 ] && exec scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"
    fi
    case $code in
        129 | 130 | 143) break ;; # a stop was requested
        {broken}) continue ;;
    esac
    [ "$code" -gt 128 ] || break
    lives=$((lives - 1))
    echo "the worker ended with signal $((code - 128))"
done
exit "$code"
"""


@dataclass(frozen=True)
class Slurm(Launcher):
    """A job array, submitted with `sbatch`; each of its tasks is one worker.

    Args:
        workers: the number of tasks in the array; there are never more than open slots.
        gres: the devices of a task, such as `gpu:1`; None for only the CPU.
        cpus: the cores of a task, and its threads.
        partition: as `sbatch` takes it; None for the cluster's default.
        time: as `sbatch` takes it; None for the cluster's default.
        memory: as `sbatch` takes it; None for the cluster's default.
        lines: lines for the script, before its commands: `#SBATCH --account=…`, `module load …`.
        submit: whether to submit the script; False only writes it.
    """

    workers: int = 4
    gres: str | None = "gpu:1"
    cpus: int = 4
    partition: str | None = None
    time: str | None = None
    memory: str | None = None
    lines: Sequence[str] = ()
    submit: bool = True
    leaves_host = True

    def __post_init__(self) -> None:
        check_count("workers", self.workers)
        check_count("cpus", self.cpus)
        if isinstance(self.time, int):  # YAML reads 2:30:00 as 9000
            raise ValueError(
                f"launcher.time must be in quotes, as '2:30:00' or '90'; got the number {self.time}"
            )
        one_word_settings: dict[str, object] = {
            "gres": self.gres,
            "partition": self.partition,
            "time": self.time,
            "memory": self.memory,
        }
        for name, value in one_word_settings.items():
            is_one_word = isinstance(value, str) and value.split() == [value]
            if value is not None and not is_one_word:
                raise ValueError(
                    f"launcher.{name} must be null, or one word that sbatch takes; got {value!r}"
                )
        if isinstance(self.lines, str) or not all(isinstance(line, str) for line in self.lines):
            raise ValueError(
                "launcher.lines must be a list of lines, such as ['#SBATCH --account=mine']; "
                f"got {self.lines!r}"
            )

    def count_workers(self, slots: int) -> int:
        return min(self.workers, slots)

    def launch(self, task: Task, stop: Stop) -> str:
        """Writes slurm.sh into the run directory, and submits it.

        Returns:
            What to print: the number of the job, and how to watch and cancel it.

        Raises:
            LaunchError: `sbatch` is missing, or refuses the script.
        """
        path = task.run_dir.absolute() / "slurm.sh"
        task.logs.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, *task.command.worker_arguments()]
        workers = self.count_workers(task.count_open_trials())
        script = self.script(task.name, workers, command, Path.cwd(), task.logs.absolute())
        path.write_text(script)
        status_line = f"watch   studyloom status {shlex.quote(str(task.run_dir))} --watch"
        if not self.submit:
            return f"submit  sbatch {shlex.quote(str(path))}\n{status_line}"
        job = submit_script(path)
        return (
            f"{task.name}: job {job}, its script {path}\n"
            f"watch   squeue --job={job}\n"
            f"cancel  scancel {job}\n"
            f"{status_line}"
        )

    def script(
        self, name: str, tasks: int, command: Sequence[str], folder: Path, logs: Path
    ) -> str:
        """Returns the script of the array: directives, `lines`, and BODY, which runs a worker.

        Args:
            name: the name of the job.
            tasks: the number of tasks.
            command: the command that starts a worker.
            folder: where the worker runs.
            logs: the folder for the output of the tasks.

        Raises:
            LaunchError: a value has a line break.
        """
        body = BODY.format(
            folder=shlex.quote(str(folder)),
            command=shlex.join(command),
            restarts=RESTARTS,
            lives=RESTARTS + 1,
            broken=BrokenProcess.exit_code,
        )
        options = {
            "job-name": " ".join(name.split()),
            "array": f"0-{tasks - 1}",
            "gres": self.gres,
            "cpus-per-task": self.cpus,
            "partition": self.partition,
            "time": self.time,
            "mem": self.memory,
            "output": str(logs).replace("%", "%%") + "/slurm-%A_%a.log",
            "signal": f"B:USR2@{SECONDS_BEFORE_LIMIT}",  # to the script (B), not to the worker
            "open-mode": "append",
            "export": "ALL",
        }
        directives = []
        for option, value in options.items():
            if value is not None:
                directives.append(f"#SBATCH --{option}={quote(str(value))}")
        lines = ["#!/bin/bash", *directives, "#SBATCH --requeue", *self.lines, "", body]
        return "\n".join(lines)


def quote(value: str) -> str:
    """Quotes a value of an #SBATCH line, if it needs that. Raises LaunchError for a line break."""
    if "\n" in value:
        raise LaunchError(
            f"launcher=slurm: a path must have no line break; got {value!r}; "
            "choose another one with run_dir=…"
        )
    if not any(character in value for character in SPECIAL_CHARACTERS):
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def submit_script(path: Path) -> str:
    """Submits a script with `sbatch`, and returns the number of the job.

    Raises:
        LaunchError: `sbatch` is missing, or refuses the script.
    """
    try:
        process = subprocess.run(["sbatch", "--parsable", path], capture_output=True, text=True)
    except OSError as error:
        raise LaunchError(
            f"launcher=slurm: sbatch cannot be run here ({error.strerror}); "
            f"on a host of the cluster: sbatch {path}"
        ) from None
    if process.returncode:
        reason = " ".join(process.stderr.split())
        raise LaunchError(f"launcher=slurm: {reason}; the script is {path}")
    number, _, _ = process.stdout.strip().partition(";")  # NUMBER, or NUMBER;CLUSTER
    return number
