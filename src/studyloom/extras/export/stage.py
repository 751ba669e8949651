"""The winner made small, by `compress=…` of a study's command or by `studyloom compress`."""

from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from studyloom.config.values import value_at
from studyloom.errors import CompressError, Stopped, StorageError, StudyloomError
from studyloom.extras.export.settings import SECTION, Settings, parse_settings, settings_of
from studyloom.files import is_newer
from studyloom.study.job import note_compressed
from studyloom.study.stopping import Stop
from studyloom.views.terminal import print_compressed
from studyloom.winner.stages import Plan

# Below the run directory: what the report shows of a winner.
SHOWN = ("winner.json", "compress.json")


def make_small(
    plan: Plan,
    settings: Settings,
    stop: Stop,
    console: Console,
    look: Callable[[], None] = lambda: None,
    *,
    anew: bool = True,
) -> dict[str, Any]:
    """Makes the winner small, notes it in the database, and writes the report.

    Args:
        plan: the stages of the run, all of which have ended.
        settings: how it is made small.
        stop: whether to stop.
        console: where to print what is being done.
        look: called at each step.
        anew: whether to do it also if it was done with these settings.

    Returns:
        what compress.json holds.

    Raises:
        UserError: it cannot be done, see `compress.compression.compress`.
        Diverged: a training has, also one of the committee.
        Stopped: it was asked to stop.
        OSError: a file cannot be read or written.
    """
    from studyloom.extras.export.compression import compress  # here: few commands need these
    from studyloom.views.report import write_report

    def say(words: str) -> None:
        console.print(Text(words), soft_wrap=True)
        look()

    try:
        record = compress(plan, settings, plan.data.test, say, stop, anew=anew)
    except StudyloomError:
        raise
    except (RuntimeError, ValueError) as error:  # of PyTorch and the user's code, as out of memory
        raise CompressError(f"{type(error).__name__}: {error}") from error
    note_compressed(plan.search.stored, record)
    report = plan.run_dir / "report.html"
    if not all(is_newer(report, plan.run_dir / name) for name in SHOWN):
        write_report(plan.search.stored, plan.run_dir)
    return record


def compress_again(
    plan: Plan, words: Sequence[str], stop: Stop, console: Console
) -> dict[str, Any]:
    """Makes the winner small as the config and words KEY=VALUE say, also if it was done before."""
    settings = parse_settings(words, settings_of(value_at(plan.question.config, SECTION)))
    return make_small(plan, settings, stop, console)


def compress_winner(
    plan: Plan, stop: Stop, console: Console, look: Callable[[], None]
) -> CompressError | None:
    """Makes the winner small if the config says so and it was not done yet, and prints the table.

    Args:
        plan: the stages of the run, all of which have ended.
        stop: whether to stop; a command that is stopped here goes on from here.
        console: where to print.
        look: called at each step.

    Returns:
        why it could not be done, to be raised once all else is told; None if there is no reason.
    """
    settings = settings_of(value_at(plan.question.config, SECTION))
    if settings is None or stop():
        return None
    try:
        record = make_small(plan, settings, stop, console, look, anew=False)
    except Stopped:
        return None
    except StorageError:
        raise
    except StudyloomError as error:
        return CompressError(f"{SECTION}: {error}")
    print_compressed(record, console)
    return None
