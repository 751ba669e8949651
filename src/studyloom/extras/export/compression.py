"""How a winner is compressed, in four steps.

1. The winner's configuration is trained once more without a validation set. The winner itself has
   seen all training data, which therefore cannot measure what is lost.
2. Variants are made of that network: pruned, or narrower students, which both learn from it; and of
   each an int8 one. They are compared by value, bytes and latency.
3. A rule chooses. What it chose is made once more, from the winner and all training data.
4. The test set is used once, for that and the winner.
"""

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.text import Text

from studyloom.config.values import value_at
from studyloom.errors import CompressError, Stopped, StorageError, StudyloomError
from studyloom.extras.export.compressor import Compressor
from studyloom.extras.export.onnx import check_installed
from studyloom.extras.export.settings import SECTION, Settings, loop_errors, metric_of
from studyloom.extras.export.variants import Say
from studyloom.files import is_newer
from studyloom.study.command_record import store_compressed
from studyloom.study.stopping import Stop
from studyloom.views.report import write_report
from studyloom.views.terminal import print_compressed
from studyloom.winner.evaluation import is_result_of
from studyloom.winner.result import (
    RECORD,
    Compressed,
    Result,
)
from studyloom.winner.stages import ResultStages


def compress_winner(
    stages: ResultStages, stop: Stop, console: Console, look: Callable[[], None]
) -> CompressError | None:
    """Compresses the winner, if the config says so and it is not compressed yet; prints the table.

    Args:
        stages: the stages of the run, all of which have ended.
        stop: whether to stop; a command that is stopped here resumes here.
        look: called at each step.

    Returns:
        why compression failed, to be raised after all else is printed; None if it succeeded.
    """
    settings = Settings.of(value_at(stages.definition.config, SECTION))
    if settings is None or stop():
        return None
    try:
        record = compress_and_report(stages, settings, stop, console, look, repeat=False)
    except Stopped:
        return None
    except StorageError:
        raise
    except StudyloomError as error:
        return CompressError(f"{SECTION}: {error}")
    print_compressed(record, console)
    return None


def compress_again(
    stages: ResultStages, words: Sequence[str], stop: Stop, console: Console
) -> Compressed:
    """Compresses the winner as the config and words KEY=VALUE say, also if it was done before."""
    settings = Settings.parse(words, value_at(stages.definition.config, SECTION))
    return compress_and_report(stages, settings, stop, console)


def compress_and_report(
    stages: ResultStages,
    settings: Settings,
    stop: Stop,
    console: Console,
    look: Callable[[], None] = lambda: None,
    *,
    repeat: bool = True,
) -> Compressed:
    """Compresses the winner, stores that in the database, and writes the report.

    Raises:
        UserError: compression is not possible, see `compress`.
        Diverged: a training has diverged.
        Stopped: a signal or command requested a stop.
        OSError: a file cannot be read or written.
    """

    def say(words: str) -> None:
        console.print(Text(words), soft_wrap=True)
        look()

    try:
        record = compress(stages, settings, say, stop, repeat=repeat)
    except StudyloomError:
        raise
    except (RuntimeError, ValueError) as error:  # of PyTorch and the user's code, as out of memory
        raise CompressError(f"{type(error).__name__}: {error}") from error
    store_compressed(stages.search.stored, record.in_short())
    report = stages.run_dir / "report.html"
    if not all(is_newer(report, stages.run_dir / name) for name in ("winner.json", RECORD)):
        write_report(stages.search.stored, stages.run_dir)
    return record


def compress(
    stages: ResultStages, settings: Settings, say: Say, stop: Stop, *, repeat: bool = True
) -> Compressed:
    """Compresses the winner of a run, tests it, and writes winner.onnx and compress.json.

    One command at a time does it in a run directory; another one waits.

    Args:
        say: called with a description of each step.
        stop: whether to stop; what is trained by then is lost, and nothing is written.
        repeat: whether to repeat it even if compress.json is of this winner and these settings.

    Raises:
        CompressError: there is no winner that studyloom trained, or it cannot be exported.
        ConfigError: the rule is invalid, or no variant satisfies it.
        PredictError: the files of the result are incomplete.
        Diverged: a training has diverged.
        Stopped: a signal or command requested a stop.
        OSError: a file cannot be read or written.
    """
    check_installed()
    run_dir = stages.run_dir
    rule = settings.parse_rule(metric_of(stages.definition))
    check_result(stages, Result.load(run_dir))
    compressor = Compressor(stages, settings, say, stop)
    with compressor.lock():
        result = Result.load(run_dir)
        record = None if repeat else Compressed.read(run_dir, result)
        if record is not None and record.settings == settings.document():
            with compressor.writing(result) as (current, _):  # a command was killed before
                compressor.complete_card(record, current)
            return record
        check_result(stages, result)
        return compressor.make(result, rule)


def check_result(stages: ResultStages, result: Result) -> None:
    """Checks that a result is that of the stages, and of a network that can be compressed.

    Raises:
        CompressError: it is not, or it is of a loop.
        PredictError: its files are not whole.
    """
    run_dir, part = stages.run_dir, stages.data.split
    errors = [*loop_errors(stages.definition)]
    if part is None or result.data is None:
        errors.append("the winner's loop loads its data itself; name it in the section data")
    if errors:
        raise CompressError(f"{run_dir}: {'; '.join(errors)}")
    result.check_whole(run_dir)
    if not stages.is_done() or not is_result_of(result, stages):
        raise CompressError(
            f"{run_dir}: winner.json is not the result of this study in its present state; run the "
            "study's command again"
        )
    if part is None or part.shape is None or part.input_at(0) is None:
        raise CompressError(
            "the inputs of the winner are not one tensor, as an ONNX file needs it; deploy "
            "winner.pt"
        )
