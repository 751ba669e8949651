"""`run`: a study from its config to its answer, from its module or from other Python code.

Nothing that takes long is imported before it is called: so a module says that it begins, and what
is wrong with its command line, before torch is there.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from studyloom.error_display import shown_at_call

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from studyloom.api import Study


@shown_at_call
def run(
    source: "str | Path | DictConfig", overrides: Sequence[str] = (), *, quiet: bool = False
) -> "Study":
    """Runs a study, or resumes it, and returns it: the search, its winner and the report.

    It does what the command `python -m studies.NAME OVERRIDES` does, with the same trials for the
    same seed, and shows the same. A module or config is code: it is imported, and what it names is
    called. Several workers are processes, which know no network that `__main__` defines.

    In a module that calls `run(cfg)` inside `hydra_main`, it is that command: it prints the answer
    and ends the process. The exit code is 0 if all is done; 2 if nothing was started, for a mistake
    in the configuration or a database or file that cannot be used; 1 if it could not finish; 3 if
    `studyloom stop` stopped it; 130 or 143 if Ctrl-C or SIGTERM did. `HYDRA_FULL_ERROR=1` shows
    tracebacks.

    Args:
        source: a module, such as studies/mine.py; a primary config, such as conf/mine.yaml; or a
            composed config.
        overrides: Hydra's, such as study.trials=50 or launcher.workers=4.
        quiet: whether to show neither progress nor answer.

    Returns:
        The study. Without a complete trial its `best` is None. After `studyloom stop` it is the
        study so far.

    Raises:
        ConfigError: all mistakes of the configuration.
        StorageError: the database cannot be used; StorageLost if it stays away.
        DefinitionError: the stored study of that name has another definition.
        Halted: all trials fail for the same reason.
        LaunchError: workers die before they claim a trial, or this process runs a study already.
        NoWinner: a training of every candidate has failed, or the test could not be made.
        KeyboardInterrupt: it was interrupted. The trials are released, and the same call resumes.
    """
    from studyloom.config.trust import active
    from studyloom.processes import importing

    if active() is not None and not isinstance(source, str | Path):
        with importing():
            from studyloom.commands.run_study import run_study

        run_study(source)
    from studyloom.api import run_from_python

    return run_from_python(source, overrides, quiet=quiet)
