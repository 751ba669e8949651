"""The study of a call from Python: what it passes to its workers, and how it ends."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

import optuna

from studyloom.commands.outputs import Outputs, take_environment
from studyloom.commands.reporting import StudyReporting
from studyloom.config.study_config import StudyConfig
from studyloom.config.values import as_yaml
from studyloom.errors import ConfigError
from studyloom.text import error_text
from studyloom.user_code.digests import CODE, find_main_globals, find_targets
from studyloom.user_code.importing import record_script
from studyloom.user_code.pickled import MAIN, OWN, passing_objects
from studyloom.winner.evaluation import WinnerStages
from studyloom.worker.driver import run_study
from studyloom.worker.open_study import OpenStudy, Prepared
from studyloom.worker.process import exit_code
from studyloom.worker.stopping import Stop
from studyloom.worker.task import Command


class CallReporting(StudyReporting):
    """Reports on the study of a call, and passes what only its program defines to workers.

    Args:
        ending: ends what is passed on, after the study is closed.
    """

    def __init__(
        self, command: Command, outputs: Outputs, config: StudyConfig, ending: ExitStack
    ) -> None:
        super().__init__(command, outputs)
        self.config = config
        self.ending = ending

    def prepare(self, prepared: Prepared) -> None:
        needed = needs_process(self.config, prepared)
        names = names_of_program(self.config)
        if names and needed and prepared.launcher.leaves_host:
            raise ConfigError(
                f"{', '.join(names)}: is defined only in this program, and the launcher starts "
                "workers on other hosts, which cannot import it; move it into a module that they "
                "have"
            )
        digests = digests_of_program(prepared) if names else {}
        used = find_main_globals(names) if names else ()
        self.ending.enter_context(
            passing_objects(names, source_digests=digests, used_globals=used, needed=needed)
        )

    @contextmanager
    def attached(self, study: OpenStudy) -> Iterator[None]:
        if f": {MAIN}" in as_yaml(self.config.written):
            record_script(study.run_dir)
        with super().attached(study):
            yield


def needs_process(config: StudyConfig, prepared: Prepared) -> bool:
    """Whether there will be another process; else there is one only if this one loses its GPU."""
    launcher = prepared.launcher
    # With a time limit for trials, or several GPUs, a single worker is a process too.
    return launcher.count(2) > 1 or launcher.gpus > 1 or config.study.trial_timeout is not None


def names_of_program(config: StudyConfig) -> list[str]:
    """Returns the names in a config that only this program defines."""
    return [name for name in dict.fromkeys(find_targets(config.written)) if name.startswith(OWN)]


def digests_of_program(prepared: Prepared) -> dict[str, str]:
    """Returns the digests of the sources of what only this program defines, by name."""
    code = prepared.definition.code
    digests = {key.removeprefix(CODE): digest for key, digest in code.items()}
    return {key: digest for key, digest in digests.items() if f"{key}.".startswith(MAIN)}


def run_call(
    config: StudyConfig, command: Command, *, quiet: bool, notes: Sequence[str]
) -> OpenStudy:
    """Runs the study of a call from Python, and returns it, closed.

    Args:
        notes: lines that are printed before the first trial.

    Raises:
        KeyboardInterrupt: a signal has stopped it.
    """
    if config.study.dry_run:
        raise ConfigError(
            "study.dry_run is for a shell: python -m studies.NAME --dry-run; leave it out"
        )
    error: Exception | None = None
    reason: str | None = None
    with Stop(config.study.timeout) as stop, ExitStack() as ending:
        ending.callback(optuna.logging.set_verbosity, optuna.logging.get_verbosity())
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        outputs = Outputs(take_environment())
        outputs.console.quiet = quiet
        outputs.console.lasting = False
        outputs.notes = notes
        reporting = CallReporting(command, outputs, config, ending)
        code = 1
        try:
            outputs.open()
            # No fork server: a fork would hang if this process has run OpenMP's threads before.
            code = run_study(config, command, reporting, stop, WinnerStages())
        except Exception as caught:
            reason = error_text(caught)
            if stop.signal is None:
                raise
            error = caught
        finally:
            if reporting.study is None:
                code = 2
            outputs.finish(exit_code(code, stop), reason)
    if stop.signal is not None:
        with suppress(KeyboardInterrupt):  # of Python's own handler, which has no words
            signal.raise_signal(stop.signal)  # for the caller's own handler, now that it is back
        raise KeyboardInterrupt(f"the study was stopped; {command.resumes} it") from error
    assert reporting.study is not None
    return reporting.study
