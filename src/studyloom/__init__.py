"""Hyperparameter search for PyTorch that survives crashes and ends with a tested model.

`search` runs a study from Python and `run` one from a config; `open_study` reads one, `load_winner`
loads its winner. Slow imports wait until a name is used: `import studyloom` imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from studyloom._version import __version__ as __version__
from studyloom.errors import ConfigError as ConfigError
from studyloom.errors import DataError as DataError
from studyloom.errors import DefinitionError as DefinitionError
from studyloom.errors import Halted as Halted
from studyloom.errors import LaunchError as LaunchError
from studyloom.errors import NoWinner as NoWinner
from studyloom.errors import PredictError as PredictError
from studyloom.errors import StorageError as StorageError
from studyloom.errors import StorageLost as StorageLost
from studyloom.errors import StudyloomError as StudyloomError
from studyloom.errors import UserError as UserError
from studyloom.run import run as run

if TYPE_CHECKING:
    from studyloom.api import Study as Study
    from studyloom.api import Trial as Trial
    from studyloom.api import Winner as Winner
    from studyloom.api import load_winner as load_winner
    from studyloom.api import open_study as open_study
    from studyloom.api import search as search
    from studyloom.objectives.loop_run import Run as Run
    from studyloom.objectives.stream import Stream as Stream
    from studyloom.space.ranges import Choice as Choice
    from studyloom.space.ranges import Float as Float
    from studyloom.space.ranges import Int as Int
    from studyloom.space.ranges import List as List
    from studyloom.winner.predictor import Prediction as Prediction

__all__ = [
    "Choice",
    "ConfigError",
    "DataError",
    "DefinitionError",
    "Float",
    "Halted",
    "Int",
    "LaunchError",
    "List",
    "NoWinner",
    "PredictError",
    "Prediction",
    "Run",
    "StorageError",
    "StorageLost",
    "Stream",
    "Study",
    "StudyloomError",
    "Trial",
    "UserError",
    "Winner",
    "__version__",
    "load_winner",
    "open_study",
    "run",
    "search",
]

# The modules of the names that are imported when they are first used.
SOURCES = {
    **dict.fromkeys(
        ["Study", "Trial", "Winner", "load_winner", "open_study", "search"], "studyloom.api"
    ),
    "Prediction": "studyloom.winner.predictor",
    **dict.fromkeys(["Choice", "Float", "Int", "List"], "studyloom.space.ranges"),
    "Run": "studyloom.objectives.loop_run",
    "Stream": "studyloom.objectives.stream",
}


def __getattr__(name: str) -> Any:
    if name not in SOURCES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from studyloom.processes import importing_optuna

    with importing_optuna():
        module = import_module(SOURCES[name])
    # Set, so that it is found without this function from now on.
    globals()[name] = getattr(module, name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
