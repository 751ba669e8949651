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
from studyloom.environment import GPU_COUNT, GPU_NOTES, PREFIX
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
LONGEST = 300.0  # seconds that a command, or a process that waits for others, may take
NO_WINNER = "winner.enabled=false"
# The program of a command that sees pretended GPUs.
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
SECOND_EPOCH = 3  # the first batch of the second epoch


class NotPossible(Exception):
    """A check needs something that this machine lacks."""


class Probe(nn.Module):
    """A network that records where it is trained, in the second epoch of a trial.

    Each process writes a note, a file in the folder of the variable STUDYLOOM_GPU_NOTES, and then
    waits until there are as many as STUDYLOOM_GPU_COUNT requires. So processes that should train at
    the same time must do so. Batches of one or two examples do not count: with them studyloom tries
    a network before the first trial.

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
        if self.training and len(inputs) > 2:
            self.batches += 1
        folder = GPU_NOTES.get()
        if self.batches == SECOND_EPOCH and folder:
            write_note(Path(folder), inputs.device)
            if self.explodes:
                torch.empty(2**50, device=inputs.device)  # 4 PiB: no GPU has as much
        outputs: Tensor = self.layers(inputs)
        return outputs


@dataclass(frozen=True)
class Note:
    """A note of a process.

    Args:
        card: the name of the GPU on which it computes.
        visible: the names of all GPUs that it sees, with commas between.
    """

    card: str
    visible: str


def write_note(folder: Path, device: torch.device) -> None:
    """Writes where this process computes, and waits for the notes of the others."""
    visible = os.environ["CUDA_VISIBLE_DEVICES"]
    card = visible
    if device != CPU:
        card = uuid_of(device)
    unfinished = folder / f"{os.getpid()}.new"
    unfinished.write_text(json.dumps(asdict(Note(card, visible))))
    unfinished.rename(unfinished.with_suffix(".json"))
    wait_for(lambda: len(notes_in(folder)) >= int(os.environ[GPU_COUNT.name]))


def notes_in(folder: Path) -> list[Path]:
    """Returns the files of the notes in a folder; each is named by the id of its process."""
    return sorted(folder.glob("*.json"))


def uuid_of(device: torch.device | int) -> str:
    """Returns the UUID of a GPU, by which CUDA_VISIBLE_DEVICES names it."""
    return str(torch.cuda.get_device_properties(device).uuid)


def wait_for(condition: Callable[[], object]) -> None:
    """Waits until a condition holds; raises AssertionError after five minutes."""
    end = time.monotonic() + LONGEST
    while not condition():
        require(time.monotonic() < end, "another process did not come")
        time.sleep(0.01)


def require(is_right: object, observation: str) -> str:
    """Returns an observation; raises AssertionError with it if it is not as expected."""
    if not is_right:
        raise AssertionError(observation)
    return observation


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
        """Runs a command of studyloom that sees some of the cards; returns its last line.

        Args:
            meanwhile: called while the command runs.
            variables: further environment variables of the command.
        """
        program = ["-m", "studyloom"]
        if self.device == CPU:
            program = ["-c", PRETENDING.format([*visible])]
        environment = {}  # without the variables by which a user configures studyloom
        for name, value in os.environ.items():
            if PREFIX not in name:
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
            output, _ = process.communicate(timeout=LONGEST)
        finally:
            process.kill()
        lines = output.splitlines() or [""]
        return require(process.returncode == 0, lines[-1][:400])

    def study(
        self,
        *overrides: str,
        visible: Sequence[str],
        count: int = 1,
        meanwhile: Callable[[Path], object] = lambda notes: None,
    ) -> tuple[Path, list[Note]]:
        """Runs a study in which a number of processes take part.

        Args:
            count: the number of processes.
            meanwhile: called with the folder of the notes while the study runs.

        Returns:
            The run directory, and the note of each process.
        """
        run_dir = Path(tempfile.mkdtemp(dir=self.folder))
        folder = run_dir / "notes"
        folder.mkdir()
        self.run(
            *STUDY,
            f"run_dir={run_dir}",
            *overrides,
            visible=visible,
            meanwhile=lambda: meanwhile(folder),
            **{GPU_NOTES.name: folder, GPU_COUNT.name: count},
        )
        notes = [Note(**json.loads(file.read_text())) for file in notes_in(folder)]
        require(len(notes) == count, f"{len(notes)} processes took part, and not {count}")
        return run_dir, notes

    def share(self, count: int, *overrides: str) -> str:
        """Has two processes train at the same time, and checks that they use so many cards.

        Args:
            count: the number of cards that the study sees and must use.
        """
        _, notes = self.study(*overrides, NO_WINNER, visible=self.first(count), count=2)
        cards = sorted({note.card for note in notes})
        return require(len(cards) == count, f"2 processes on {', '.join(cards)}")


def trials_of(run_dir: Path) -> list[dict[str, Any]]:
    """Returns a row for each trial of a run."""
    with closing(open_study(f"sqlite:///{run_dir / 'study.db'}", "mnist")) as stored:
        return trial_rows(stored).to_dicts()


@functools.cache
def run_exploding_study(cards: Gpus) -> tuple[Path, str]:
    """Runs a study on the last card; its second trial needs more memory than there is.

    Several checks look at this study, which is run once.

    Returns:
        The run directory, and the card on which it was trained.
    """
    run_dir, (note,) = cards.study(
        "+model.explodes=false",
        "space=none",
        "+space.model.explodes.choice=[false,true]",
        "sampler=grid",
        "launcher.workers=1",
        "winner.top=1",
        "winner.seeds=1",
        visible=cards.names[-1:],
    )
    return run_dir, note.card


def make_job(precision: str = "fp32") -> Job:
    """Makes a job for the data of `make_data`."""
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
    """Checks that losses differ from the expected ones by at most a share of these."""
    distance = float((losses / expected - 1).abs().max())
    return require(distance <= tolerance, f"{distance:.1e} apart; at most {tolerance:g} is right")


# The checks


def one_worker_on_each_of_two_cards(cards: Gpus) -> str:
    return cards.share(2, "launcher.workers=2")


def two_workers_on_one_card_by_per_gpu(cards: Gpus) -> str:
    return cards.share(1, "launcher.per_gpu=2")


def cuda_visible_devices(cards: Gpus) -> str:
    _, card = run_exploding_study(cards)
    last = cards.names[-1]
    if cards.device != CPU:
        last = uuid_of(len(cards.names) - 1)
    return require(card == last, f"trained on {card}, visible was {last}")


def out_of_memory_ends_its_trial_alone(cards: Gpus) -> str:
    run_dir, _ = run_exploding_study(cards)
    good, bad = sorted(trials_of(run_dir), key=lambda row: row["params.model.explodes"])
    is_right = good["state"] == "complete" and bad["failure"] == "out_of_memory"
    return require(is_right, f"{good['state']}, then {bad['failure']}: {bad['reason']}")


def replay_of_a_trial(cards: Gpus) -> str:
    run_dir, _ = run_exploding_study(cards)
    return cards.run("replay", run_dir, "--trial", 0, visible=cards.names[-1:])


def predict_without_a_gpu(cards: Gpus) -> str:
    np.save(cards.folder / "input.npy", np.zeros((1, 28, 28), np.float32))
    run_dir, _ = run_exploding_study(cards)
    return cards.run("predict", run_dir, "input.npy", visible=())


def fp32_as_on_the_cpu(cards: Gpus) -> str:
    return check_near(train_on(cards.device), train_on(CPU), 1e-4)


def bf16_near_fp32(cards: Gpus) -> str:
    return check_near(train_on(cards.device, "bf16"), train_on(cards.device), 0.05)


def one_worker_sees_two_cards_by_gpus(cards: Gpus) -> str:
    pair = cards.first(2)
    _, (note,) = cards.study("launcher.gpus=2", NO_WINNER, visible=pair)
    return require(note.visible == ",".join(pair), f"1 process that sees {note.visible}")


def kill_9_in_a_trial(cards: Gpus) -> str:
    def kill(notes: Path) -> None:
        wait_for(lambda: notes_in(notes))
        os.kill(int(notes_in(notes)[0].stem), signal.SIGKILL)

    run_dir, _ = cards.study(
        "launcher.workers=1",
        f"study.trial_timeout={LONGEST:g}",  # makes a single worker a separate process
        NO_WINNER,
        visible=cards.names[:1],
        count=2,  # the killed process, and the one that resumes its trial
        meanwhile=kill,
    )
    states = [row["state"] for row in trials_of(run_dir)]
    return require(states == ["complete"] * 2, f"resumed; trials are {', '.join(states)}")


# Their names, with blanks, are those of the rows that a user sees.
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
    """Runs the checks on the GPUs here, prints a row for each, and returns them.

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
        cards = Gpus(tuple(visible_gpus()), torch.device("cuda", 0), Path(folder))
        for check in CHECKS:
            row = _run_check(check, cards)
            rows.append(row)
            observation = in_markdown(shorten(row["message"], 300))
            print_line(f"| {row['name']} | {row['state']} | {row['seconds']} | {observation} |")
    return rows


def _run_check(check: Callable[[Gpus], str], cards: Gpus) -> dict[str, Any]:
    """Runs a check, and returns its row; an error is the observation of a check that failed."""
    began = time.monotonic()
    state = "ok"
    try:
        observation = check(cards)
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
