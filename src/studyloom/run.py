"""A study from its config to its answer. A page in `studies/` calls `run`.

Nothing that takes long is imported before it is called: so a page says that it begins, and what is
wrong with its command line, before torch is there.
"""

import gc
from typing import TYPE_CHECKING

from studyloom import make_callable
from studyloom.processes import signals_deferred

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from studyloom.launch.task import Command


def run(cfg: "DictConfig", command: "Command | None" = None) -> None:
    """Runs the study that a config describes, or resumes it, and prints the answer.

    Ends the process: with 0 if all is done; with 2 if nothing was started, for a mistake in the
    configuration or a database or file that cannot be used; with 1 if it could not finish; with 3
    if `studyloom stop` stopped it; with 130 or 143 if Ctrl-C or SIGTERM did.
    `HYDRA_FULL_ERROR=1` shows tracebacks.

    Args:
        cfg: the config as composed, inside `hydra_main`.
        command: starts the workers; None for the command of this process.
    """
    with signals_deferred():  # a Ctrl-C in the midst comes out of the libraries as any error
        from studyloom.commands.run_study import run_study

    gc.freeze()  # later collections skip the imported modules: 0.8 s at exit alone
    run_study(cfg, command)


# `studyloom.run(…)` is the API; `from studyloom.run import run`, which pages do, needs the module.
make_callable(__name__)
