"""`run`: runs a study from its config to its result, in a study module or other Python code.

Slow imports wait until it is called, so that a study module reports that it starts, and errors in
its command line, before it imports torch.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from studyloom.error_display import wants_tracebacks
from studyloom.errors import StudyloomError

if TYPE_CHECKING:
    from studyloom.api import Study
    from studyloom.config.invocation import Source


def run(source: "Source", overrides: Sequence[str] = (), *, quiet: bool = False) -> "Study":
    """Runs or resumes the study of a study module or YAML config: search, winner and report.

        study = run("studies/mnist.py", ["study.trials=50", "launcher.workers=4"])

    It does what the command `python -m studies.NAME OVERRIDES` does, with the same trials for the
    same seed and the same output. It imports the study module and calls what the config names.
    Several workers are separate processes, which cannot import a network defined in `__main__`;
    `search` passes such a network to them.

    In a study module that calls `run(cfg)` inside `hydra_main`, it prints the result and ends the
    process. The exit code is 0 if everything is done; 2 if nothing started, because of an error in
    the configuration or a database or file that cannot be used; 1 if the study could not finish; 3
    after `studyloom stop`; 130 after Ctrl-C and 143 after SIGTERM. `HYDRA_FULL_ERROR=1` shows
    tracebacks.

    Args:
        source: a study module, such as studies/mine.py; a primary config, such as conf/mine.yaml;
            or a config that Hydra returned.
        overrides: Hydra overrides, such as study.trials=50 or launcher.workers=4; none by default.
        quiet: True: prints neither progress nor result.

    Returns:
        The study; after `studyloom stop`, the study so far. Its `best` is None if no trial is
        complete.

    Raises:
        ConfigError: the configuration has errors; the message lists all of them.
        StorageError: the database cannot be used; StorageLost if it stays away.
        DefinitionError: the stored study of that name has another definition.
        Halted: all trials fail for the same reason.
        LaunchError: workers die before they claim a trial, or this process already runs a study.
        NoWinner: every candidate has a training that failed, or the test failed.
        KeyboardInterrupt: it was interrupted. The trials are released, and the same call resumes.
    """
    from studyloom.config.trust import active
    from studyloom.processes import importing_optuna, importing_torch

    # Within `hydra_main`, this process is the command of the study, and ends with it.
    if active() is not None and not isinstance(source, str | Path):
        with importing_torch():
            from studyloom.commands.run_study import command_process
            from studyloom.config.study_config import StudyConfig

        command_process(StudyConfig.of(source)).run()
    with importing_optuna():
        from studyloom.api import run_from_python

    try:
        return run_from_python(source, overrides, quiet=quiet)
    except (StudyloomError, KeyboardInterrupt) as error:
        if wants_tracebacks():
            raise
        raise error.with_traceback(None) from None
