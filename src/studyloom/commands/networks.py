"""`studyloom winner`, `ablate`, `compress`, `predict`, `replay`: what a study has trained."""

import argparse
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studyloom.commands.options import (
    CODE,
    CONSENT,
    JSON,
    NETWORK,
    RUN_DIR,
    NetworkTarget,
    argument,
    command,
    locate_study,
    open_run,
    print_json,
    text_stream,
    trust,
)
from studyloom.commands.plugins import load_plugin
from studyloom.error_display import print_errors
from studyloom.errors import PredictError
from studyloom.processes import collect_garbage_as_usual
from studyloom.text import indented

if TYPE_CHECKING:
    from studyloom.commands.choose_winner import ChosenWinner
    from studyloom.winner.result import InputPrediction


# Overrides that run the stages after the search in this process, whatever launcher the study had.
EVALUATE = ("winner.enabled=true", "launcher=join")


def run_later_stages(
    arguments: argparse.Namespace,
    *overrides: str,
    repeats_test: bool,
    network: NetworkTarget | None = None,
) -> "ChosenWinner":
    """Runs the stages after the search: the re-evaluation, the final training and the test.

    Args:
        overrides: overrides of the study's command.
        repeats_test: whether to test the winner again if it was tested before. If not, the stored
            test is reused.
        network: a value of the option `--network`, if the user gives it.
    """
    from studyloom.commands.choose_winner import choose_winner
    from studyloom.config.compose import recompose
    from studyloom.config.trust import code_of_study
    from studyloom.views.consoles import make_console
    from studyloom.winner.predictor import load_network

    with (
        code_of_study(arguments.run_dir, arguments.code),
        recompose(
            arguments.run_dir, *EVALUATE, *overrides, trusted=arguments.trust_config
        ) as config,
    ):
        if network is not None and (arguments.run_dir / "winner.json").exists():
            # A network that cannot be made is an error before anything is written.
            load_network(arguments.run_dir, named=network)
        console = make_console(text_stream(arguments))
        return choose_winner(config, console, repeats_test=repeats_test)


@command(
    "choose and test the winner of a finished search again",
    *(RUN_DIR, *CONSENT, CODE, NETWORK, JSON),
    examples=["studyloom winner runs/mnist", "studyloom winner runs/mine --network mine.Net"],
)
def winner(arguments: argparse.Namespace) -> None:
    """Chooses the winner of a search that has ended, trains it, and tests it. Stored trainings are
    reused. With --network it adds what makes the network to the result, and reuses its test too.
    """
    network = arguments.network
    if network is None:
        chosen = run_later_stages(arguments, repeats_test=True)
    else:
        override = network_override(network)
        chosen = run_later_stages(arguments, override, repeats_test=False, network=network)
    if arguments.json:
        document = {
            "study": chosen.study,
            "run_dir": str(arguments.run_dir),
            "result": chosen.result,
        }
        print_json(document)


def network_override(network: NetworkTarget) -> str:
    """Returns the override of `objective.network` for a value of the option `--network`."""
    if isinstance(network, str):
        return f"objective.network={network}"
    ((name, target),) = network.items()
    return f"objective.network={{{name}:{target}}}"


@command(
    "train the winner without each of its changes",
    *(RUN_DIR, *CONSENT, CODE, JSON),
    examples=["studyloom ablate runs/mnist"],
)
def ablate(arguments: argparse.Namespace) -> None:
    """Puts each hyperparameter of the winner back to its default, trains that with the seeds of the
    re-evaluation, and prints how much worse it is. Writes winner.simple.yaml, the configuration
    with the fewest changes that is about as good. Stored trainings are reused.
    """
    from studyloom.winner.result import Result, to_document

    run_later_stages(arguments, "winner.ablation=true", repeats_test=False)
    if arguments.json:
        print_json(to_document(Result.load(arguments.run_dir).ablation))


@command(
    "compress the winner to winner.onnx",
    RUN_DIR,
    argument(
        *("settings", "KEY=VALUE"),
        "settings such as margin=0.01 ratios=[0.5] 'rule=min latency_ms where bytes < 50_000'",
        nargs="*",
    ),
    *(*CONSENT, CODE, JSON),
    examples=["studyloom compress runs/mnist ratios=[0.5] margin=0.01"],
)
def compress(arguments: argparse.Namespace) -> None:
    """Compresses the winner: exports it to ONNX, prunes, distills and quantizes it to int8. Prints
    the cost of each variant, and writes the chosen one as winner.onnx.
    """
    from studyloom.commands.choose_winner import open_study_after_search
    from studyloom.config.compose import recompose
    from studyloom.config.trust import code_of_study
    from studyloom.errors import Interrupted
    from studyloom.views.consoles import make_console
    from studyloom.winner.evaluation import read_evaluation
    from studyloom.winner.result import to_document
    from studyloom.worker.stopping import Stop

    console = make_console(text_stream(arguments))
    if arguments.trust_server:
        locate_study(arguments)  # starts the server
    with (
        code_of_study(arguments.run_dir, arguments.code),
        recompose(arguments.run_dir, *EVALUATE, trusted=arguments.trust_config) as config,
        ExitStack() as open_studies,
    ):
        # Within `Stop`, Ctrl-C requests a stop, so that the study is closed in order. After it,
        # Ctrl-C ends the command at once: compression holds no trial that others could continue.
        with Stop() as stop:
            study = open_studies.enter_context(open_study_after_search(config, stop))
        if stop():
            raise Interrupted
        compress_winner = load_plugin("compress")
        record = compress_winner(read_evaluation(study), arguments.settings, stop, console)
    if arguments.json:
        print_json(to_document(record))
    else:
        load_plugin("print_compressed")(record, console)


@command(
    "predict with the winner: images, arrays or numbers",
    argument("run_dir", "RUN_DIR", "a folder with winner.json, .yaml and .pt", type=Path),
    argument(
        *("files", "FILE"),
        "an image of any size, a WAV or .npy file, a CSV file with a line for each input, a .npz "
        "file of arrays for a network of several, or what the Reader of the study reads",
        type=Path,
        nargs="+",
    ),
    trust("a package that the winner may name; its code is executed"),
    *(CODE, NETWORK, JSON),
    examples=["studyloom predict runs/mnist digit.png"],
)
def predict(arguments: argparse.Namespace) -> int:
    """Prints the winner's predictions for inputs, and how they differ from the training data."""
    from studyloom.config.trust import code_of_study
    from studyloom.views.words import format_prediction
    from studyloom.winner.predictor import load_network

    collect_garbage_as_usual()  # commands collect it rarely while they import modules
    imports_code = bool(arguments.trust or arguments.network)
    with code_of_study(arguments.run_dir, arguments.code, trusts_working_folder=imports_code):
        network = load_network(arguments.run_dir, arguments.trust, named=arguments.network)
    predictions = load_plugin("predict")(network, arguments.files)
    if arguments.json:
        return print_results(predictions)
    for prediction in predictions:
        print(indented(format_prediction(prediction)))
    return 0


def print_results(predictions: "Iterator[InputPrediction]") -> int:
    """Prints predictions as JSON. Returns the exit code: 2 if a file holds no input."""
    documents: list[dict[str, Any]] = []
    errors: list[str] = []
    try:
        for prediction in predictions:
            documents.append(asdict(prediction))
    except PredictError as error:
        errors = error.errors
        print_errors(error)
    print_json({"predictions": documents, "errors": errors})
    if errors:
        return 2
    return 0


@command(
    "train a trial again, and compare it epoch by epoch",
    *(RUN_DIR, *CONSENT),
    argument("--trial", "NUMBER", "the number of the trial", type=int, required=True),
    trust("your own package that the trial may name; its code is executed"),
    JSON,
    examples=["studyloom replay runs/mnist --trial 17"],
)
def replay(arguments: argparse.Namespace) -> int:
    """Trains a trial again, and compares it epoch by epoch. The exit code is 0 if the result is
    equal or within tolerance, else 1.
    """
    from studyloom.config.compose import initialized_as_run
    from studyloom.config.trust import code_of_study
    from studyloom.views.consoles import make_console

    stored = open_run(arguments)
    # A trusted trial may name code in the current folder, where `python -m studies.mine` looks too.
    folder = None
    if arguments.trust:
        folder = Path.cwd()
    collect_garbage_as_usual()  # commands collect it rarely while they import modules
    console = make_console(text_stream(arguments))
    with code_of_study(arguments.run_dir, folder), initialized_as_run(arguments.run_dir):
        train_again = load_plugin("replay")
        code: int = train_again(
            stored, arguments.run_dir, arguments.trial, arguments.trust, console
        )
    if arguments.json:
        document = {
            "study": stored.name,
            "trial": arguments.trial,
            "equal": code == 0,
            "exit_code": code,
        }
        print_json(document)
    return code
