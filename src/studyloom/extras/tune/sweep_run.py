"""Runs the command of a W&B sweep for a trial, with its parameters in a file or as JSON.

    python -m studyloom.extras.tune.sweep_run sweep.yaml lr=0.1 -- python train.py '{args_json}'

The words before `--` are the sweep file and the values of the trial. In the command, the word
{args_json} becomes all parameters as JSON, and {args_json_file} the name of a file with them.

With `--logged val_loss` before the file, the command is a script that uses W&B. It runs offline and
has the parameters in `wandb.config`, by the variables that W&B's own agent sets. What it logs of
val_loss is printed while it runs.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import yaml  # type: ignore[import-untyped]

from studyloom.extras.adopt.wandb_folder import HistoryRow, read_history
from studyloom.extras.tune.sweep_file import LOGGED, read_sweep
from studyloom.extras.tune.sweep_parameters import ParameterReader
from studyloom.processes import start_tied_process

FLUSH_INTERVAL = 0.2  # seconds, between writes of W&B to its file, and between looks at it
JSON_FILE = Path("sweep-parameters.json")  # in the folder of the trial


def collect_parameters(
    sweep: Mapping[object, object], assignments: Sequence[str]
) -> dict[str, object]:
    """Returns the parameters of a trial by name, nested ones in mappings, as W&B gives them.

    Args:
        sweep: the content of the sweep file.
        assignments: the values of the trial, such as lr=0.1 and optimizer.momentum=0.9.
    """
    texts = dict(word.split("=", 1) for word in assignments)
    reader = ParameterReader()
    reader.read(sweep.get("parameters"))
    root: dict[str, object] = {}
    for parameter in reader.parameters:
        tree = root
        *sections, name = parameter.path
        for section in sections:
            subtree = tree.setdefault(section, {})
            assert isinstance(subtree, dict)
            tree = subtree
        tree[name] = parameter.find_item(texts.get(".".join(parameter.path), ""))
    return root


@dataclass
class LoggedValues:
    """Prints the values of a metric that a script logs by `wandb.log`, while it runs.

    The step of a value is the `epoch` that is logged with it, else the step of W&B.

    Attributes:
        name: the name of the metric.
        folder: where W&B's folders of runs are.
        printed: how many rows of each run were printed or passed over.
        names: the names of all numbers that were logged.
    """

    name: str
    folder: Path
    printed: dict[Path, int] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)

    def print_new(self) -> None:
        """Prints the values that were logged since the last call."""
        for file in sorted(self.folder.glob("wandb/*/*.wandb")):
            if file.parent.is_symlink():  # the link `latest-run`
                continue
            rows: list[HistoryRow] = []
            with suppress(ValueError, OSError):  # its first bytes are not written yet
                rows = read_history(file)
            for row in rows[self.printed.get(file, 0) :]:
                self.names.update(row.numbers)
                if self.name in row.numbers:
                    value = row.numbers[self.name]
                    print(f"{LOGGED} step {_step_of(row)} {self.name}={value!r}", flush=True)
            self.printed[file] = len(rows)

    def end(self) -> None:
        """Prints which numbers were logged, if the metric is none of them."""
        if self.name not in self.names:
            names = ", ".join(sorted(self.names)) or "nothing"
            print(f"wandb.log has logged no {self.name}; it has logged {names}", flush=True)


def _step_of(row: HistoryRow) -> int:
    """Returns the step of a row: its epoch, if that is a whole number."""
    epoch = row.numbers.get("epoch", 0.5)
    if epoch.is_integer() and epoch >= 0:
        return int(epoch)
    return row.step


def run_offline(command: Sequence[str], parameters: Mapping[str, object], name: str) -> int:
    """Runs a script whose W&B is offline and gets the parameters; returns its exit code.

    Args:
        command: the script and its arguments.
        parameters: the values of `wandb.config`.
        name: the name of the metric, whose logged values are printed.
    """
    folder = Path(tempfile.mkdtemp(prefix="wandb-", dir=Path.cwd()))  # of this attempt
    parameter_file = folder / "parameters.yaml"
    content: dict[str, object] = {"wandb_version": 1}
    for key, value in parameters.items():
        content[key] = {"value": value}
    parameter_file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    variables = {
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(folder),
        "WANDB_SWEEP_PARAM_PATH": str(parameter_file),
        "WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL": str(FLUSH_INTERVAL),
    }
    values = LoggedValues(name, folder)
    process = start_tied_process(command, env=os.environ | variables)
    has_ended = False
    while not has_ended:
        has_ended = process.poll() is not None  # before the last look, so that it sees all
        began = time.monotonic()
        values.print_new()
        if not has_ended:
            # A look reads the file from its start, and takes at most a twentieth of the time.
            time.sleep(max(FLUSH_INTERVAL, 20 * (time.monotonic() - began)))
    values.end()
    if process.returncode < 0:  # a signal has ended it
        return 128 - process.returncode
    return process.returncode


def main(arguments: Sequence[str]) -> None:
    """Runs the command.

    Args:
        arguments: the words of the command line.
    """
    logged = ""
    if arguments[0] == "--logged":
        logged = arguments[1]
        arguments = arguments[2:]
    end = arguments.index("--")
    file, *assignments = arguments[:end]
    parameters = collect_parameters(read_sweep(Path(file)), assignments)
    text = json.dumps(parameters)
    command = []
    for word in arguments[end + 1 :]:
        if word == "{args_json}":
            command.append(text)
        elif word == "{args_json_file}":
            JSON_FILE.write_text(text, encoding="utf-8")
            command.append(str(JSON_FILE))
        else:
            command.append(word)
    if logged:
        sys.exit(run_offline(command, parameters, logged))
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
