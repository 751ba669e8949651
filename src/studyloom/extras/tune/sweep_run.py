"""Runs the command of a W&B sweep for a trial, with its parameters in a file or as JSON.

    python -m studyloom.extras.tune.sweep_run sweep.yaml lr=0.1 -- python train.py '{args_json}'

The words before `--` are the sweep file and the values of the trial. In the command, the word
{args_json} becomes all parameters as JSON, and {args_json_file} the name of a file with them.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from studyloom.extras.tune.sweep_file import read_sweep
from studyloom.extras.tune.sweep_parameters import ParameterReader

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


def main(arguments: Sequence[str]) -> None:
    """Runs the command in place of this process.

    Args:
        arguments: the words of the command line.
    """
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
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
