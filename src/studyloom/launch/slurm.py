"""Workers as the tasks of a SLURM job array, which goes on when this command has ended."""

import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from studyloom.errors import LaunchError
from studyloom.launch.supervisor import RESTARTS
from studyloom.launch.task import Task, worker_arguments
from studyloom.study.stopping import Stop

WARNING = (
    120  # seconds before the time is up in which a trial is handed back at the end of its epoch
)
BODY = """\
cd {folder} || exit
export OMP_NUM_THREADS=${{SLURM_CPUS_PER_TASK:-1}}

# On USR2 the worker hands its trial back at its last epoch, and the task is queued again. One that another signal ends
# is started again, {restarts} times.
again=
trap 'again=yes; [ "$!" ] && kill -TERM "$!"' USR2
for _ in {lives}; do
    {command} &
    worker=$!
    [ "$again" ] && kill -TERM "$worker" # the signal came before there was this worker
    wait "$worker"
    code=$?
    if [ "$again" ]; then # the signal has ended the wait
        wait "$worker"
        code=$?
        # By its place in the array: the last task's own number is that of the whole array too.
        [ "$code" = 143 ] && exec scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"
    fi
    case $code in
        129 | 130 | 143) break ;; # told to stop
    esac
    [ "$code" -gt 128 ] || break
    echo "the worker ended with signal $((code - 128))"
done
exit "$code"
"""


@dataclass(frozen=True)
class Slurm:
    """A job array below the run directory, submitted with `sbatch`, each task of which is one worker.

    Args:
        workers: tasks of the array; never more than slots are left.
        gres: what a task is given, such as `gpu:1`; None for the CPU alone.
        cpus: cores of a task, and its threads.
        partition, time, memory: as `sbatch` takes them; None for the cluster's defaults.
        lines: further lines of the script, before its commands: `#SBATCH --account=…`, `module load …`.
        submit: or only write the script.
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
        for name in ("workers", "cpus"):
            number = getattr(self, name)
            if type(number) is not int or number < 1:
                raise ValueError(f"launcher.{name}: {number!r} is no whole number from 1")
        if isinstance(self.time, int):  # YAML reads 2:30:00 as 9000
            raise ValueError(
                f"launcher.time: {self.time} is a number; put it in quotes, as '2:30:00' or '90'"
            )
        for name in ("gres", "partition", "time", "memory"):
            value = getattr(self, name)
            if value is not None and (
                not isinstance(value, str) or not value or value.split() != [value]
            ):
                raise ValueError(
                    f"launcher.{name}: {value!r} is neither null nor one word, as sbatch takes it"
                )
        if isinstance(self.lines, str) or not all(isinstance(line, str) for line in self.lines):
            raise ValueError(
                f"launcher.lines: {self.lines!r} is no list of lines, such as ['#SBATCH --account=mine']"
            )

    def count(self, slots: int) -> int:
        return min(self.workers, slots)

    def launch(self, task: Task, stop: Stop) -> str:
        path = task.run_dir.absolute() / "slurm.sh"
        task.logs.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, *worker_arguments()]
        path.write_text(
            self.script(
                task.name, self.count(task.todo()), command, Path.cwd(), task.logs.absolute()
            )
        )
        follow = f"watch   studyloom status {shlex.quote(str(task.run_dir))} --watch"
        if not self.submit:
            return f"submit  sbatch {shlex.quote(str(path))}\n{follow}"
        job = submitted(path)
        return f"{task.name}: job {job}, its script {path}\nwatch   squeue --job={job}\ncancel  scancel {job}\n{follow}"

    def script(
        self, name: str, tasks: int, command: Sequence[str], folder: Path, logs: Path
    ) -> str:
        """The array script: directives, the lines of the config, and a worker that is kept alive."""
        body = BODY.format(
            folder=shlex.quote(str(folder)),
            command=shlex.join(command),
            restarts=RESTARTS,
            lives=" ".join(map(str, range(1, RESTARTS + 2))),
        )
        return "\n".join(
            ["#!/bin/bash", *self.directives(name, tasks, logs), *self.lines, "", body]
        )

    def directives(self, name: str, tasks: int, logs: Path) -> Iterator[str]:
        output = str(logs).replace("%", "%%") + "/slurm-%A_%a.log"
        given = {
            "job-name": " ".join(name.split()),
            "array": f"0-{tasks - 1}",
            "gres": self.gres,
            "cpus-per-task": self.cpus,
            "partition": self.partition,
            "time": self.time,
            "mem": self.memory,
            "output": output,
            "signal": f"B:USR2@{WARNING}",
            "open-mode": "append",
            "export": "ALL",
        }
        for option, value in given.items():
            if value is not None:
                yield f"#SBATCH --{option}={quoted(str(value))}"
        yield "#SBATCH --requeue"


def quoted(value: str) -> str:
    """A value as sbatch reads it from its script. Raises LaunchError where that would end the line."""
    if "\n" in value:
        raise LaunchError(f"launcher=slurm: {value!r} has a line break; name another run_dir=…")
    inner = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{inner}"' if {*value} & {*" \t'\"#\\"} else value


def submitted(path: Path) -> str:
    """The number of the job that `sbatch` makes of a script. Raises LaunchError."""
    try:
        done = subprocess.run(["sbatch", "--parsable", path], capture_output=True, text=True)
    except OSError as error:
        raise LaunchError(
            f"launcher=slurm: sbatch cannot be run here ({error.strerror}); on a host of the cluster: sbatch {path}"
        ) from None
    if done.returncode:
        raise LaunchError(f"launcher=slurm: {' '.join(done.stderr.split())}; the script is {path}")
    return done.stdout.strip().partition(";")[0]
