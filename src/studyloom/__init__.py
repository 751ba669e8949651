"""Optuna-based study orchestration for PyTorch.

Everything in `__all__` is imported when it is first used: `import studyloom` takes no torch.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from studyloom._version import __version__ as __version__

if TYPE_CHECKING:
    from studyloom.api import Study as Study
    from studyloom.api import Trial as Trial
    from studyloom.api import Winner as Winner
    from studyloom.api import open_study as open_study
    from studyloom.api import run as run
    from studyloom.api import search as search
    from studyloom.errors import ConfigError as ConfigError
    from studyloom.errors import DataError as DataError
    from studyloom.errors import Halted as Halted
    from studyloom.errors import LaunchError as LaunchError
    from studyloom.errors import NoWinner as NoWinner
    from studyloom.errors import PredictError as PredictError
    from studyloom.errors import QuestionError as QuestionError
    from studyloom.errors import StorageError as StorageError
    from studyloom.errors import StorageLost as StorageLost
    from studyloom.errors import StudyloomError as StudyloomError
    from studyloom.errors import UserError as UserError
    from studyloom.question.run import Run as Run
    from studyloom.winner.predictor import LoopWinner as LoopWinner
    from studyloom.winner.predictor import Prediction as Prediction
    from studyloom.winner.predictor import Predictor as Predictor
    from studyloom.winner.predictor import load_winner as load_winner

__all__ = [
    "ConfigError",
    "DataError",
    "Halted",
    "LaunchError",
    "LoopWinner",
    "NoWinner",
    "PredictError",
    "Prediction",
    "Predictor",
    "QuestionError",
    "Run",
    "StorageError",
    "StorageLost",
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

SOURCES = {
    **dict.fromkeys(["Study", "Trial", "Winner", "open_study", "search"], "studyloom.api"),
    **dict.fromkeys(
        ["LoopWinner", "Prediction", "Predictor", "load_winner"], "studyloom.winner.predictor"
    ),
    "Run": "studyloom.question.run",
}


def __getattr__(name: str) -> Any:
    if name == "run":  # a module that can be called, see `make_callable`
        return import_module(f"{__name__}.run")
    if name in __all__:
        value = getattr(import_module(SOURCES.get(name, "studyloom.errors")), name)
        globals()[name] = value  # found without this function from now on
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class CallableModule(ModuleType):
    """A module that can be called as the function of its name in `studyloom.api`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        function = getattr(import_module("studyloom.api"), self.__name__.rpartition(".")[2])
        return function(*args, **kwargs)


def make_callable(name: str) -> None:
    """Makes a module of studyloom a function, too.

    `studyloom.run` is a function of the API, and a module: pages do `from studyloom.run import
    run`. Python sets the attribute to the module as soon as anybody imports it, so the module
    itself has to be the function.

    Args:
        name: the full name of the module, which calls this for itself.
    """
    sys.modules[name].__class__ = CallableModule


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
