"""The environment variables of studyloom, each with its meaning.

A module that reads or sets a variable imports it from here, so that its name is written once.
`--help` lists the variables that users set, and those that studyloom sets for a command which is
the objective.
"""

import os
import textwrap
from dataclasses import dataclass

VARIABLE_PREFIX = "STUDYLOOM_"
HELP_WIDTH = 80  # columns of a help


@dataclass(frozen=True)
class Variable:
    """An environment variable: its name, and what its value means."""

    name: str
    meaning: str

    def get(self) -> str | None:
        """Returns its value in this process; None if it is not set."""
        return os.environ.get(self.name)

    def take(self) -> str | None:
        """Returns its value and removes it, so that child processes do not inherit it."""
        return os.environ.pop(self.name, None)


# Variables that a person sets.
STORAGE = Variable("STUDYLOOM_STORAGE", "the storage URL, instead of the file in run_dir")
DATA = Variable(
    "STUDYLOOM_DATA", "a folder with any of mnist/ fashion-mnist/ 20newsgroups/ ml-100k/"
)
DEVICE = Variable("STUDYLOOM_DEVICE", "mps trains on the GPU of a Mac")
PORTABLE = Variable("STUDYLOOM_PORTABLE", "1 takes the portable paths of other systems on Linux")
TRACEBACKS = Variable("HYDRA_FULL_ERROR", "1 shows tracebacks")

# Variables that the command line sets, or a person: where a command prints, and in which form. They
# are not in the config, since they are not part of a study. Hydra writes the config to files, and a
# notify URL often holds a secret.
EVENTS = Variable("STUDYLOOM_EVENTS", "as --events: a file of a line of JSON an event")
NOTIFY = Variable("STUDYLOOM_NOTIFY", "as notify=: URLs or commands, a line each")
JSON = Variable("STUDYLOOM_JSON", "1 as --json: one JSON object at the end")

# Variables that are set for a command which is the objective.
SEED = Variable("STUDYLOOM_SEED", "the seed of the trial that a command runs")
TRIAL = Variable("STUDYLOOM_TRIAL", "the number of the trial that a command runs")
CHECKPOINT_DIR = Variable("STUDYLOOM_CHECKPOINT_DIR", "a folder of the trial that a command runs")

PUBLIC = (
    STORAGE,
    DATA,
    DEVICE,
    EVENTS,
    NOTIFY,
    JSON,
    SEED,
    TRIAL,
    CHECKPOINT_DIR,
    PORTABLE,
    TRACEBACKS,
)

# Variables that are set for worker processes, and for what they start.
WORKER = Variable("STUDYLOOM_WORKER", "the age of a worker's launcher in seconds")
LINE = Variable("STUDYLOOM_LINE", "the descriptor of a worker's line to its launcher")
RECYCLE = Variable("STUDYLOOM_RECYCLE", "how many trials a worker takes up")
SHARED = Variable("STUDYLOOM_SHARED", "the key of the data that workers share, and their file")
PICKLED = Variable("STUDYLOOM_PICKLED", "the descriptor of the pickled objects, and their word")
MARK = Variable("STUDYLOOM_MARK", "a random word that marks the processes of one worker")
GPU_NOTES = Variable("STUDYLOOM_GPU_NOTES", "the folder of the notes of doctor --gpu")
GPU_COUNT = Variable("STUDYLOOM_GPU_COUNT", "how many notes a probe of doctor --gpu waits for")


def variables_help() -> str:
    """Returns the part of a help that lists the public variables, in two columns."""
    indent = "  "
    name_width = 26  # columns, with the gap after the longest name
    wrapper = textwrap.TextWrapper(
        HELP_WIDTH,
        initial_indent=indent,
        subsequent_indent=" " * (len(indent) + name_width),
    )
    lines = ["environment variables:"]
    for variable in PUBLIC:
        lines.append(wrapper.fill(f"{variable.name:<{name_width}}{variable.meaning}"))
    return "\n".join(lines)
