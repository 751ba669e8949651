"""`studyloom stop`, `pause` and `resume`: what another terminal asks of a study that runs."""

import argparse
import time
from typing import TYPE_CHECKING

from studyloom.commands.options import CONSENT, JSON, RUN_DIR, command, open_run, print_json
from studyloom.text import one_line

if TYPE_CHECKING:
    from studyloom.study.stopping import Wish
    from studyloom.views.progress import JobReader, Progress

DEADLINE = 10.0  # seconds that a command waits for a database that is busy or away
LOOK = 0.5  # seconds between looks at the workers
LONGEST = 300.0  # seconds in which the workers come to the end of their epochs


def ask(arguments: argparse.Namespace, wish: "Wish | None") -> int:
    """Stores a wish, and waits until no worker holds a trial if that is what it means.

    Args:
        wish: stop or pause; None to go on.

    Returns:
        The exit code: 0, or 1 if workers still hold trials after some minutes.
    """
    from studyloom.commands.documents import Control
    from studyloom.study.stopping import read_control, set_control
    from studyloom.views.progress import JobReader

    stored = open_run(arguments, DEADLINE)
    reader, before = JobReader(stored), read_control(stored)
    progress = reader.read()
    if wish is not None and progress.ended:
        words, wish = "has ended already; there is nothing to ask of it", before
    else:
        set_control(stored, wish)
        if wish is not None:
            words = wait(reader, wish, say=not arguments.json)
        elif before == "stop":
            words = "was stopped; the command that runs it goes on with it"
        else:
            words = "goes on" if before else "was neither stopped nor paused"
    left = holders(reader.read()) if wish is not None else []
    if arguments.json:
        print_json(Control(stored.name, before, wish, bool(holders(progress)), left))
    else:
        print(f"{one_line(stored.name)} {words}")
    return int(bool(left) and not progress.ended)


def wait(reader: "JobReader", wish: "Wish", *, say: bool) -> str:
    """Waits until the workers have released their trials, and returns how it has gone.

    Args:
        say: whether to print what is waited for.
    """
    done = {"stop": "is stopped", "pause": "is paused"}[wish]
    end, told = time.monotonic() + LONGEST, not say
    while held := holders(reader.read()):
        if not told:
            told = True
            many = "a trial is" if len(held) == 1 else f"{len(held)} trials are"
            print(f"{many} released at the end of the epoch", flush=True)
        if time.monotonic() > end:
            return f"{done}, but {', '.join(map(one_line, held))} still hold trials"
        time.sleep(LOOK)
    goes_on = {"stop": "the command that runs it", "pause": "studyloom resume"}
    return f"{done}; {goes_on[wish]} goes on with it"


def holders(progress: "Progress") -> list[str]:
    """Returns the ids of the workers that hold trials of a job now."""
    snapshots = [stage.snapshot for stage in progress.stages if stage.snapshot is not None]
    return [w.owner for snapshot in snapshots for w in snapshot.workers if w.alive]


@command(
    "stop a study that runs, on all hosts",
    *(RUN_DIR, *CONSENT, JSON),
    examples=["studyloom stop runs/mnist"],
)
def stop(arguments: argparse.Namespace) -> int:
    """Stops a study that runs: its workers on all hosts release their trials at the last epoch, and
    its commands end with exit code 3. The same command goes on with it later.
    """
    return ask(arguments, "stop")


@command(
    "let the workers of a study wait until it is resumed",
    *(RUN_DIR, *CONSENT, JSON),
    examples=["studyloom pause runs/mnist"],
)
def pause(arguments: argparse.Namespace) -> int:
    """Pauses a study that runs: its workers on all hosts release their trials at the last epoch and
    wait. They keep their memory; a GPU or a core is free for other work.
    """
    return ask(arguments, "pause")


@command(
    "go on with a study that is paused",
    *(RUN_DIR, *CONSENT, JSON),
    examples=["studyloom resume runs/mnist"],
)
def resume(arguments: argparse.Namespace) -> int:
    """Goes on with a study that is paused."""
    return ask(arguments, None)
