"""How a winner is compressed, in four steps.

1. The winner's configuration is trained once more without a validation set. The winner itself has
   seen all training data, which therefore cannot measure what is lost.
2. Variants are made of that network: pruned, or narrower students, which both learn from it; and an
   int8 variant of each. They are compared by value, bytes and latency.
3. A rule chooses a variant, which is made once more, from the winner and all training data.
4. The test set is used once, for the file of this variant and the winner together.
"""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from studyloom.errors import StudyloomError
from studyloom.extras.export.compressor import Compressor
from studyloom.extras.export.export_errors import CompressError
from studyloom.extras.export.onnx import check_installed
from studyloom.extras.export.record import CHOSEN, Compressed
from studyloom.extras.export.settings import Settings, loop_errors, metric_of
from studyloom.extras.export.variants import Say
from studyloom.views.terminal_lines import render_rows, say
from studyloom.winner.assemble_result import is_result_of
from studyloom.winner.evaluation import Evaluation
from studyloom.winner.result import Result
from studyloom.worker.stopping import Stop

WIDTH_OF_PERCENTILES = 130  # columns of the table with the percentiles of latencies


def compress(
    evaluation: Evaluation, assignments: Sequence[str], stop: Stop, console: Console
) -> Compressed:
    """Compresses the winner of a study that has ended, and prints each step.

    Args:
        assignments: the settings, as KEY=VALUE each.

    Raises:
        UserError: compression is not possible, see `compress_winner`.
        Diverged: a training has diverged.
        Stopped: a signal or command requested a stop.
        OSError: a file cannot be read or written.
    """

    def print_step(step: str) -> None:
        console.print(Text(step), soft_wrap=True)

    try:
        settings = Settings.parse(assignments)
        return compress_winner(evaluation, settings, print_step, stop)
    except StudyloomError:
        raise
    except (RuntimeError, ValueError) as error:  # from PyTorch or the user's code
        raise CompressError(f"{type(error).__name__}: {error}") from error


def compress_winner(evaluation: Evaluation, settings: Settings, say: Say, stop: Stop) -> Compressed:
    """Compresses the winner of a run, tests it, and writes winner.onnx and winner.onnx.json.

    One command at a time compresses in a run directory; another one waits.

    Args:
        say: called with a description of each step.
        stop: ends the work where a signal or command requests it. What is trained by then is
            lost, and nothing is written.

    Raises:
        CompressError: there is no winner that studyloom trained, or it cannot be exported.
        ConfigError: the rule is invalid, or no variant satisfies it.
        PredictError: the files of the result are incomplete.
        Diverged: a training has diverged.
        Stopped: a signal or command requested a stop.
        OSError: a file cannot be read or written.
    """
    check_installed()
    rule = settings.parse_rule(metric_of(evaluation.study.definition))
    # Errors are raised before this command waits for another one.
    check_result(evaluation, Result.load(evaluation.study.run_dir))
    compressor = Compressor(evaluation, settings, say, stop)
    with compressor.lock():
        # The study may have another result after the wait.
        result = Result.load(evaluation.study.run_dir)
        check_result(evaluation, result)
        return compressor.make(result, rule)


def check_result(evaluation: Evaluation, result: Result) -> None:
    """Checks that the result in winner.json is current, and that its network can be compressed.

    Args:
        evaluation: what the database holds about the winner now.
        result: the content of winner.json.

    Raises:
        CompressError: a check fails.
        PredictError: a file of the result is missing or has changed.
    """
    run_dir = evaluation.study.run_dir
    examples = evaluation.study.data.split
    errors = list(loop_errors(evaluation.study.definition))
    if examples is None or result.data is None:
        errors.append("the winner's loop loads its data itself; name it in the section data")
    if errors:
        raise CompressError(f"{run_dir}: {'; '.join(errors)}")
    result.check_whole(run_dir)  # raises PredictError
    if not is_result_of(result, evaluation):
        raise CompressError(
            f"{run_dir}: winner.json is not the result of this study in its present state; run the "
            "study's command again"
        )
    assert examples is not None  # or `errors` has a line
    if examples.shape is None or examples.input_at(0) is None:
        raise CompressError(
            "the inputs of the winner are not one tensor, as an ONNX file needs it; deploy "
            "winner.pt"
        )


def print_compressed(record: Compressed, console: Console) -> None:
    """Prints the variants of a compressed winner, and the chosen one.

    A narrow terminal shows only the medians of latencies; winner.onnx.json has their percentiles.
    """
    rows = []
    for row in record.rows():
        if console.width < WIDTH_OF_PERCENTILES:
            row = tuple(cell.partition(" (")[0] for cell in row)  # 1.2 (1.1–1.4) becomes 1.2
        rows.append(row)
    last_column = len(rows[0]) - 1
    text_columns = (0, last_column)  # the names, and the marks or notes
    console.print(render_rows(rows, text_columns, CHOSEN), soft_wrap=True)
    say(console, "\n".join(record.lines()))
