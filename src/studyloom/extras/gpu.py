"""`studyloom doctor --gpu`: tries what studies do on GPUs, and prints a table for an issue.

Each check returns what was seen, or raises. `pytest -m gpu` runs the same checks, and where torch
can use no GPU two that are made up: commands see them, and all is computed on the CPU.
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
from dataclasses import dataclass
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
STAND_IN = (
    "import sys; from studyloom.cli import main; from studyloom.worker import local; "
    "local.visible_gpus = lambda: {}; sys.exit(main())"
)
STUDY = (
    *("run", "mnist", "model._target_=studyloom.extras.gpu.Probe", "~model.hidden"),
    *("~model.activation", "~model.dropout", "~model.init", "~model.standardize", "space=lr"),
    *("sampler=random", "pruner=none", "study.trials=2", "train.epochs=2"),
    *("data.validation=100", "train.samples_per_epoch=64", "train.batch_size=32"),
)


class NotPossible(Exception):
    """A check needs something that this machine lacks."""


class Probe(nn.Module):
    """A network that says where it is trained, in the second epoch of a trial.

    Each process writes a file into the folder of the variable STUDYLOOM_GPU_NOTES, and then waits
    until there are as many as STUDYLOOM_GPU_COUNT says. Batches of one or two do not count: these
    are tries before the first trial.

    Args:
        explodes: whether it then allocates more memory than there is.
    """

    def __init__(self, shape: Sequence[int], outputs: int, explodes: bool = False) -> None:
        super().__init__()
        ends = nn.Linear(math.prod(shape), 32), nn.Linear(32, outputs)
        self.layers = nn.Sequential(nn.Flatten(), ends[0], nn.ReLU(), ends[1])
        self.explodes, self.steps = explodes, 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.steps += self.training and len(inputs) > 2
        if self.steps == 3 and (folder := GPU_NOTES.get()):
            note_place(Path(folder), inputs.device)
            if self.explodes:
                torch.empty(2**50, device=inputs.device)
        outputs: Tensor = self.layers(inputs)
        return outputs


def note_place(folder: Path, device: torch.device) -> None:
    """Writes where this process computes, and waits for the notes of the others."""
    visible = os.environ["CUDA_VISIBLE_DEVICES"]
    card = visible if device == CPU else uuid_of(device)
    note = folder / f"{os.getpid()}.new"
    note.write_text(json.dumps([card, visible]))
    note.rename(note.with_suffix(".json"))
    wait_for(lambda: len(notes_in(folder)) >= int(os.environ[GPU_COUNT.name]))


def notes_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.json"))


def uuid_of(device: torch.device | int) -> str:
    return str(torch.cuda.get_device_properties(device).uuid)


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + LONGEST
    while not condition():
        must(time.monotonic() < end, "another process did not come")
        time.sleep(0.01)


def must(holds: object, words: str) -> str:
    """Returns what was seen; raises AssertionError if it is not as expected."""
    if not holds:
        raise AssertionError(words)
    return words


@dataclass(frozen=True)
class Gpus:
    """The GPUs of the checks, as CUDA_VISIBLE_DEVICES names them, and a folder for their runs."""

    names: Sequence[str]
    device: torch.device
    folder: Path

    def first(self, count: int) -> Sequence[str]:
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
        """Runs a command of studyloom that sees some of the cards; returns its last line."""
        program = ("-c", STAND_IN.format([*visible])) if self.device == CPU else ("-m", "studyloom")
        kept = {name: value for name, value in os.environ.items() if PREFIX not in name}
        pipes: Any = {"stdin": DEVNULL, "stdout": PIPE, "stderr": STDOUT}
        variables |= {"CUDA_VISIBLE_DEVICES": ",".join(visible), "XDG_STATE_HOME": self.folder}
        process = Popen(
            [sys.executable, *program, *map(str, arguments)],
            cwd=self.folder,
            env=kept | {name: str(value) for name, value in variables.items()},
            text=True,
            **pipes,
        )
        try:
            meanwhile()
            (*_, last) = process.communicate(timeout=LONGEST)[0].splitlines() or [""]
        finally:
            process.kill()
        return must(process.returncode == 0, str(last)[:400])

    def study(
        self,
        *overrides: str,
        visible: Sequence[str],
        count: int = 1,
        meanwhile: Callable[[Path], object] = lambda notes: None,
    ) -> tuple[Path, list[Any]]:
        """Runs a study in which so many processes take part; returns the note of each."""
        run_dir = Path(tempfile.mkdtemp(dir=self.folder))
        (notes := run_dir / "notes").mkdir()
        self.run(
            *(*STUDY, f"run_dir={run_dir}", *overrides),
            visible=visible,
            meanwhile=lambda: meanwhile(notes),
            **{GPU_NOTES.name: notes, GPU_COUNT.name: count},
        )
        found = [json.loads(note.read_text()) for note in notes_in(notes)]
        must(len(found) == count, f"{len(found)} processes took part, and not {count}")
        return run_dir, found

    def shared(self, count: int, *overrides: str) -> str:
        """Has two processes train on so many cards."""
        _, notes = self.study(*overrides, NO_WINNER, visible=self.first(count), count=2)
        found = sorted({card for card, _ in notes})
        return must(len(found) == count, f"2 processes on {', '.join(found)}")


def trials_of(run_dir: Path) -> list[dict[str, Any]]:
    with closing(open_study(f"sqlite:///{run_dir / 'study.db'}", "mnist")) as stored:
        return trial_rows(stored).to_dicts()


@functools.cache
def small(cards: Gpus) -> tuple[Path, str]:
    """Runs a study on the last card, whose second trial needs too much; returns the card too."""
    bad, one = "+space.model.explodes.choice=[false,true]", ("winner.top=1", "winner.seeds=1")
    of_study = ("+model.explodes=false", "space=none", bad, "sampler=grid", "launcher.workers=1")
    run_dir, ((card, _),) = cards.study(*of_study, *one, visible=cards.names[-1:])
    return run_dir, card


def job_of(precision: str = "fp32") -> Job:
    some = torch.arange(640)
    return Job(
        model=Probe,
        optimizer=torch.optim.Adam,
        schedule=lambda progress: 1.0,
        loss=nn.functional.cross_entropy,
        train=some[:512],
        valid=some[512:],
        epochs=2,
        batch_size=64,
        seed=0,
        precision=precision,
    )


def split_on(device: torch.device) -> Split:
    inputs = torch.randn(640, 784, generator=torch.Generator().manual_seed(0))
    return Split(inputs=inputs, targets=torch.arange(640) % 10, outputs=10, digest="").to(device)


def losses_on(device: torch.device, precision: str = "fp32") -> Tensor:
    training = Training([job_of(precision)], split_on(device))
    return torch.tensor([epoch.train_loss for (epoch,) in training])


def near(one: Tensor | float, other: Tensor | float, most: float) -> str:
    apart = float(torch.as_tensor(one / other - 1).abs().max())
    return must(apart <= most, f"{apart:.1e} apart; at most {most:g} is right")


# The checks


def one_worker_on_each_of_two_cards(cards: Gpus) -> str:
    return cards.shared(2, "launcher.workers=2")


def two_workers_on_one_card_by_per_gpu(cards: Gpus) -> str:
    return cards.shared(1, "launcher.per_gpu=2")


def cuda_visible_devices(cards: Gpus) -> str:
    _, card = small(cards)
    last = cards.names[-1] if cards.device == CPU else uuid_of(len(cards.names) - 1)
    return must(card == last, f"trained on {card}, visible was {last}")


def out_of_memory_ends_its_trial_alone(cards: Gpus) -> str:
    good, bad = sorted(trials_of(small(cards)[0]), key=lambda row: row["params.model.explodes"])
    holds = good["state"] == "complete" and bad["failure"] == "out_of_memory"
    return must(holds, f"{good['state']}, then {bad['failure']}: {bad['reason']}")


def replay_of_a_trial(cards: Gpus) -> str:
    return cards.run("replay", small(cards)[0], "--trial", 0, visible=cards.names[-1:])


def predict_without_a_gpu(cards: Gpus) -> str:
    np.save(cards.folder / "input.npy", np.zeros((1, 28, 28), np.float32))
    return cards.run("predict", small(cards)[0], "input.npy", visible=())


def fp32_as_on_the_cpu(cards: Gpus) -> str:
    return near(losses_on(cards.device), losses_on(CPU), 1e-4)


def bf16_near_fp32(cards: Gpus) -> str:
    return near(losses_on(cards.device, "bf16"), losses_on(cards.device), 0.05)


def one_worker_sees_two_cards_by_gpus(cards: Gpus) -> str:
    pair = cards.first(2)
    _, [(_, visible)] = cards.study("launcher.gpus=2", NO_WINNER, visible=pair)
    return must(visible == ",".join(pair), f"1 process that sees {visible}")


def kill_9_in_a_trial(cards: Gpus) -> str:
    def kill(notes: Path) -> None:
        wait_for(lambda: notes_in(notes))
        os.kill(int(notes_in(notes)[0].stem), signal.SIGKILL)

    # With a time limit a single worker is a separate process.
    one = ("launcher.workers=1", f"study.trial_timeout={LONGEST:g}", NO_WINNER)
    run_dir, _ = cards.study(*one, visible=cards.names[:1], count=2, meanwhile=kill)
    states = [row["state"] for row in trials_of(run_dir)]
    return must(states == ["complete"] * 2, f"resumed; trials are {', '.join(states)}")


CHECKS: tuple[Callable[[Gpus], str], ...] = (
    *(two_workers_on_one_card_by_per_gpu, one_worker_on_each_of_two_cards),
    one_worker_sees_two_cards_by_gpus,
    *(cuda_visible_devices, out_of_memory_ends_its_trial_alone, replay_of_a_trial),
    *(predict_without_a_gpu, fp32_as_on_the_cpu, bf16_near_fp32),
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
    rows = list[dict[str, Any]]()
    say: Callable[[str], object] = str if quiet else functools.partial(print, flush=True)
    say(
        in_markdown(f"{list_versions().message}, CUDA {torch.version.cuda}, {read_nvidia_driver()}")
        + "\n"
    )
    say(in_markdown(list_devices().message) + "\n")
    say("| check | | seconds | what was seen |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="studyloom-gpu-") as folder:
        cards = Gpus(tuple(visible_gpus()), torch.device("cuda", 0), Path(folder))
        for check in CHECKS:
            began, state = time.monotonic(), "ok"
            try:
                words = check(cards)
            except NotPossible as error:
                state, words = "not possible here", str(error)
            except Exception as error:
                state, words = "failed", name_error(error)
            name, seconds = check.__name__.replace("_", " "), round(time.monotonic() - began, 1)
            rows.append({"name": name, "state": state, "seconds": seconds, "words": words})
            say(f"| {name} | {state} | {seconds} | {in_markdown(shorten(words, 300))} |")
    return rows
