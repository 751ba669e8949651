"""`studyloom doctor --gpu`: tries what studies do on GPUs, and prints a table for an issue.

Each check returns its observation in words, or raises. `pytest -m gpu` runs the same checks. Where
torch can use no GPU, it runs them on two pretended GPUs: commands see these, and all is computed on
the CPU.
"""

import functools
import json
import math
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT, Popen
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from studyloom.data.split import Split
from studyloom.environment import GPU_COUNT, GPU_NOTES, VARIABLE_PREFIX
from studyloom.errors import ConfigError
from studyloom.processes import read_nvidia_driver
from studyloom.storage.opening import open_study
from studyloom.storage.trial_tables import trial_rows
from studyloom.text import in_markdown, name_error, shorten
from studyloom.training.job import Job
from studyloom.training.trainer import Training
from studyloom.views.doctor import list_devices, list_versions
from studyloom.worker.local import visible_gpus

CPU = torch.device("cpu")
DEADLINE = 300.0  # seconds that a command, or a process that waits for others, may take
MAX_LINE_LENGTH = 400  # characters of a command's output in an error
MAX_OBSERVATION_LENGTH = 300  # characters in the table
NO_WINNER = "winner.enabled=false"
# The program of a command for which the CPU pretends to have GPUs; the braces get their names.
PRETENDING = (
    "import sys; from studyloom.cli import main; from studyloom.worker import local; "
    "local.visible_gpus = lambda: {}; sys.exit(main())"
)
# The study that is run with a network of this module. Two batches of 32 examples are an epoch.
STUDY = (
    "run",
    "mnist",
    "model._target_=studyloom.extras.gpu.Probe",
    "~model.hidden",
    "~model.activation",
    "~model.dropout",
    "~model.init",
    "~model.standardize",
    "space=lr",
    "sampler=random",
    "pruner=none",
    "study.trials=2",
    "train.epochs=2",
    "data.validation=100",
    "train.samples_per_epoch=64",
    "train.batch_size=32",
)
FIRST_BATCH_OF_SECOND_EPOCH = 3  # counted from 1, over all epochs
MAX_TRIED_EXAMPLES = 2  # in a batch of studyloom's check of a network before the first trial
TOO_MANY_NUMBERS = 2**50  # as float32 4 PiB: no GPU has as much memory


class NotPossible(Exception):
    """A check needs something that this machine lacks."""


class Probe(nn.Module):
    """A network that records where it is trained, in the second epoch of a trial.

    Each process writes a note, a file in the folder of the variable STUDYLOOM_GPU_NOTES, and then
    waits until there are as many as STUDYLOOM_GPU_COUNT requires. So processes that should train at
    the same time must do so.

    Args:
        explodes: whether it then allocates more memory than there is.
    """

    def __init__(self, shape: Sequence[int], outputs: int, explodes: bool = False) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(math.prod(shape), 32),
            nn.ReLU(),
            nn.Linear(32, outputs),
        )
        self.explodes = explodes
        self.batches = 0

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns the outputs.

        At the first batch of the second epoch, when the trial has a checkpoint to resume from, it
        writes a note of the GPU that it is on; and if it `explodes`, it then asks for more memory
        than there is.
        """
        # Preflight, the check before the first trial, calls the network with few examples.
        is_training_batch = self.training and len(inputs) > MAX_TRIED_EXAMPLES
        if is_training_batch:
            self.batches += 1
        folder = GPU_NOTES.get()
        if self.batches == FIRST_BATCH_OF_SECOND_EPOCH and folder:
            write_note(Path(folder), inputs.device)
            if self.explodes:
                torch.empty(TOO_MANY_NUMBERS, device=inputs.device)
        outputs: Tensor = self.layers(inputs)
        return outputs


@dataclass(frozen=True)
class Note:
    """A note of a process.

    Args:
        gpu: the name of the GPU on which it computes.
        visible: the names of all GPUs that it sees, with commas between.
    """

    gpu: str
    visible: str


def write_note(folder: Path, device: torch.device) -> None:
    """Writes where this process computes, and waits for the notes of the others."""
    visible = os.environ["CUDA_VISIBLE_DEVICES"]
    if device == CPU:
        gpu = visible  # a pretended GPU, the only one that this process sees
    else:
        gpu = read_uuid(device)
    unfinished = folder / f"{os.getpid()}.new"
    unfinished.write_text(json.dumps(asdict(Note(gpu, visible))))
    unfinished.rename(unfinished.with_suffix(".json"))  # appears once it is complete
    wait_for(lambda: len(list_notes(folder)) >= int(os.environ[GPU_COUNT.name]))


def list_notes(folder: Path) -> list[Path]:
    """Returns the files of the notes in a folder; each is named by the id of its process."""
    return sorted(folder.glob("*.json"))


def read_uuid(device: torch.device | int) -> str:
    """Returns the UUID of a GPU, by which CUDA_VISIBLE_DEVICES names it."""
    return str(torch.cuda.get_device_properties(device).uuid)


def wait_for(condition: Callable[[], object]) -> None:
    """Waits until a condition holds; raises AssertionError after five minutes."""
    end = time.monotonic() + DEADLINE
    while not condition():
        require(time.monotonic() < end, "another process did not come")
        time.sleep(0.01)


def require(is_expected: object, observation: str) -> str:
    """Returns an observation for the table; raises AssertionError with it if it is unexpected."""
    if not is_expected:
        raise AssertionError(observation)
    return observation


@dataclass(frozen=True)
class StudyRun:
    """A study that has ended.

    Args:
        run_dir: its run directory.
        notes: the note of each process that trained.
    """

    run_dir: Path
    notes: Sequence[Note]


@dataclass(frozen=True)
class Gpus:
    """The GPUs of the checks, as CUDA_VISIBLE_DEVICES names them, and a folder for their runs."""

    names: Sequence[str]
    device: torch.device
    folder: Path

    def first(self, count: int) -> Sequence[str]:
        """Returns the names of the first GPUs; raises NotPossible if there are fewer."""
        if len(self.names) < count:
            raise NotPossible(f"it needs {count} GPUs")
        return self.names[:count]

    def run(
        self,
        *arguments: object,
        visible: Sequence[str],
        meanwhile: Callable[[], object] = lambda: None,
        **variables: object,
    ) -> str:
        """Runs a command of studyloom, and returns the last line of its output.

        Args:
            visible: the GPUs that the command sees.
            meanwhile: called while the command runs.
            variables: further environment variables of the command.

        Raises:
            AssertionError: the command fails.
        """
        program = ["-m", "studyloom"]
        if self.device == CPU:
            program = ["-c", PRETENDING.format([*visible])]
        environment = {}
        for name, value in os.environ.items():
            is_setting_of_studyloom = VARIABLE_PREFIX in name  # the user's must not change a check
            if not is_setting_of_studyloom:
                environment[name] = value
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(visible)
        environment["XDG_STATE_HOME"] = str(self.folder)
        for name, setting in variables.items():
            environment[name] = str(setting)
        process = Popen(
            [sys.executable, *program, *map(str, arguments)],
            cwd=self.folder,
            env=environment,
            text=True,
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=STDOUT,
        )
        try:
            meanwhile()
            output, _ = process.communicate(timeout=DEADLINE)
        finally:
            process.kill()
        last_line = ""
        if output:
            last_line = output.splitlines()[-1]
        return require(process.returncode == 0, last_line[:MAX_LINE_LENGTH])

    def study(
        self,
        *overrides: str,
        visible: Sequence[str],
        count: int = 1,
        meanwhile: Callable[[Path], object] = lambda notes: None,
    ) -> StudyRun:
        """Runs a study in which a number of processes take part.

        Args:
            overrides: settings of the study, besides those of STUDY.
            visible: the GPUs that the study sees.
            count: the number of processes.
            meanwhile: called with the folder of the notes while the study runs.
        """
        run_dir = Path(tempfile.mkdtemp(dir=self.folder))
        notes_folder = run_dir / "notes"
        notes_folder.mkdir()
        # The environment variables that `Probe` reads in the processes of the study.
        variables = {GPU_NOTES.name: notes_folder, GPU_COUNT.name: count}
        self.run(
            *STUDY,
            f"run_dir={run_dir}",
            *overrides,
            visible=visible,
            meanwhile=lambda: meanwhile(notes_folder),
            **variables,
        )
        notes = [Note(**json.loads(file.read_text())) for file in list_notes(notes_folder)]
        require(len(notes) == count, f"{len(notes)} processes took part, and not {count}")
        return StudyRun(run_dir, notes)

    def train_in_two_processes(self, count: int, *overrides: str) -> str:
        """Has two processes train at the same time, and checks how many GPUs they use.

        Args:
            count: the number of GPUs that the study sees, and must use.
        """
        run = self.study(*overrides, NO_WINNER, visible=self.first(count), count=2)
        used_gpus = sorted({note.gpu for note in run.notes})
        return require(len(used_gpus) == count, f"2 processes on {', '.join(used_gpus)}")


def read_trials(run_dir: Path) -> list[dict[str, Any]]:
    """Returns a row for each trial of a run."""
    with closing(open_study(f"sqlite:///{run_dir / 'study.db'}", "mnist")) as stored:
        return trial_rows(stored).to_dicts()


@functools.cache
def run_exploding_study(gpus: Gpus) -> StudyRun:
    """Runs a study on the last GPU; its second trial needs more memory than there is.

    Several checks look at this study, which is run once. It has a single process.
    """
    return gpus.study(
        "+model.explodes=false",
        "space=none",
        "+space.model.explodes.choice=[false,true]",
        "sampler=grid",
        "launcher.workers=1",
        "winner.top=1",
        "winner.seeds=1",
        visible=gpus.names[-1:],
    )


def make_job(precision: str = "fp32") -> Job:
    """Makes a job for the data of `make_data`, which has 640 examples."""
    examples = torch.arange(640)
    return Job(
        model=Probe,
        optimizer=torch.optim.Adam,
        schedule=lambda progress: 1.0,
        loss=nn.functional.cross_entropy,
        train=examples[:512],
        valid=examples[512:],
        epochs=2,
        batch_size=64,
        seed=0,
        precision=precision,
    )


def make_data(device: torch.device) -> Split:
    """Makes random inputs of ten classes, on a device."""
    inputs = torch.randn(640, 784, generator=torch.Generator().manual_seed(0))
    return Split(inputs=inputs, targets=torch.arange(640) % 10, outputs=10, digest="").to(device)


def train_on(device: torch.device, precision: str = "fp32") -> Tensor:
    """Trains a network on a device, and returns the training loss of each epoch."""
    training = Training([make_job(precision)], make_data(device))
    return torch.tensor([epoch.train_loss for (epoch,) in training])


def check_near(losses: Tensor, expected: Tensor, tolerance: float) -> str:
    """Checks that no loss differs from the expected one by more than a share of it."""
    distance = float((losses / expected - 1).abs().max())
    return require(distance <= tolerance, f"{distance:.1e} apart; at most {tolerance:g} is right")


# The checks. Their names, with blanks, are those of the rows of the table.


def one_worker_on_each_of_two_cards(gpus: Gpus) -> str:
    return gpus.train_in_two_processes(2, "launcher.workers=2")


def two_workers_on_one_card_by_per_gpu(gpus: Gpus) -> str:
    return gpus.train_in_two_processes(1, "launcher.per_gpu=2")


def cuda_visible_devices(gpus: Gpus) -> str:
    """Checks that a study trains on the only GPU that it sees."""
    (note,) = run_exploding_study(gpus).notes
    last_gpu = gpus.names[-1]
    if gpus.device != CPU:
        last_gpu = read_uuid(len(gpus.names) - 1)
    return require(note.gpu == last_gpu, f"trained on {note.gpu}, visible was {last_gpu}")


def out_of_memory_ends_its_trial_alone(gpus: Gpus) -> str:
    """Checks that one of two trials fails for want of memory, and the other is complete."""
    run = run_exploding_study(gpus)
    rows = sorted(read_trials(run.run_dir), key=lambda row: row["params.model.explodes"])
    small, exploding = rows
    is_expected = small["state"] == "complete" and exploding["failure"] == "out_of_memory"
    return require(
        is_expected, f"{small['state']}, then {exploding['failure']}: {exploding['reason']}"
    )


def replay_of_a_trial(gpus: Gpus) -> str:
    run = run_exploding_study(gpus)
    return gpus.run("replay", run.run_dir, "--trial", 0, visible=gpus.names[-1:])


def predict_without_a_gpu(gpus: Gpus) -> str:
    np.save(gpus.folder / "input.npy", np.zeros((1, 28, 28), np.float32))
    run = run_exploding_study(gpus)
    return gpus.run("predict", run.run_dir, "input.npy", visible=())


def fp32_as_on_the_cpu(gpus: Gpus) -> str:
    return check_near(train_on(gpus.device), train_on(CPU), tolerance=1e-4)


def bf16_near_fp32(gpus: Gpus) -> str:
    return check_near(train_on(gpus.device, "bf16"), train_on(gpus.device), tolerance=0.05)


def one_worker_sees_two_cards_by_gpus(gpus: Gpus) -> str:
    pair = gpus.first(2)
    run = gpus.study("launcher.gpus=2", NO_WINNER, visible=pair)
    (note,) = run.notes
    return require(note.visible == ",".join(pair), f"1 process that sees {note.visible}")


def kill_9_in_a_trial(gpus: Gpus) -> str:
    """Kills the process of a trial, and checks that another process resumes the trial."""

    def kill_first_process(notes_folder: Path) -> None:
        wait_for(lambda: list_notes(notes_folder))
        first_note = list_notes(notes_folder)[0]
        pid = int(first_note.stem)  # the name of the note, such as 4711.json
        os.kill(pid, signal.SIGKILL)

    run = gpus.study(
        "launcher.workers=1",
        f"study.trial_timeout={DEADLINE:g}",  # makes a single worker a separate process
        NO_WINNER,
        visible=gpus.names[:1],
        count=2,  # the killed process, and the one that resumes its trial
        meanwhile=kill_first_process,
    )
    states = [row["state"] for row in read_trials(run.run_dir)]  # of the baseline and a trial
    observation = f"resumed; trials are {', '.join(states)}"
    return require(states == ["complete", "complete"], observation)


CHECKS: tuple[Callable[[Gpus], str], ...] = (
    two_workers_on_one_card_by_per_gpu,
    one_worker_on_each_of_two_cards,
    one_worker_sees_two_cards_by_gpus,
    cuda_visible_devices,
    out_of_memory_ends_its_trial_alone,
    replay_of_a_trial,
    predict_without_a_gpu,
    fp32_as_on_the_cpu,
    bf16_near_fp32,
    kill_9_in_a_trial,
)


def show(*, quiet: bool = False) -> list[dict[str, Any]]:
    """Runs the checks on the GPUs here, prints a row for each, and returns the rows.

    Args:
        quiet: whether nothing is printed.

    Raises:
        ConfigError: torch can use no GPU.
    """
    if not torch.cuda.is_available():
        raise ConfigError(
            f"torch {torch.__version__} can use no GPU here; is it built for yours, and what does "
            "CUDA_VISIBLE_DEVICES hide?"
        )

    def print_line(line: str) -> None:
        if not quiet:
            print(line, flush=True)

    cuda = f"CUDA {torch.version.cuda}, {read_nvidia_driver()}"
    print_line(in_markdown(f"{list_versions().message}, {cuda}") + "\n")
    print_line(in_markdown(list_devices().message) + "\n")
    print_line("| check | | seconds | what was seen |\n|---|---|---|---|")
    rows = []
    with tempfile.TemporaryDirectory(prefix="studyloom-gpu-") as folder:
        gpus = Gpus(tuple(visible_gpus()), torch.device("cuda", 0), Path(folder))
        for check in CHECKS:
            row = _run_check(check, gpus)
            rows.append(row)
            observation = in_markdown(shorten(row["message"], MAX_OBSERVATION_LENGTH))
            print_line(f"| {row['name']} | {row['state']} | {row['seconds']} | {observation} |")
    return rows


def _run_check(check: Callable[[Gpus], str], gpus: Gpus) -> dict[str, Any]:
    """Runs a check, and returns its row; an error is the observation of a check that failed."""
    began = time.monotonic()
    state = "ok"
    try:
        observation = check(gpus)
    except NotPossible as error:
        state = "not possible here"
        observation = str(error)
    except Exception as error:
        state = "failed"
        observation = name_error(error)
    return {
        "name": check.__name__.replace("_", " "),
        "state": state,
        "seconds": round(time.monotonic() - began, 1),
        "message": observation,
    }
