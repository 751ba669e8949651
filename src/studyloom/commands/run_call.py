"""The study of a call from Python: it passes objects of the program to workers, and then runs."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

import optuna

from studyloom.commands.callbacks_of_call import Callback, CallbackListener
from studyloom.commands.objects_of_program import names_script, pass_objects_of_program
from studyloom.commands.outputs import Outputs, take_environment
from studyloom.commands.reporting import StudyReporting
from studyloom.config.study_config import StudyConfig
from studyloom.errors import ConfigError
from studyloom.text import error_text
from studyloom.user_code.importing import record_script
from studyloom.winner.evaluation import WinnerStages
from studyloom.worker.driver import run_study
from studyloom.worker.open_study import OpenStudy, Prepared
from studyloom.worker.process import find_exit_code
from studyloom.worker.stopping import Stop
from studyloom.worker.task import Command


class CallReporting(StudyReporting):
    """Reports on the study of a call, and passes objects that only its program defines to workers.

    Args:
        ending: a stack whose end, after the study is closed, ends the passing of objects.
        callbacks: calls the functions that the call gives as `callbacks`.
    """

    def __init__(
        self,
        command: Command,
        outputs: Outputs,
        config: StudyConfig,
        ending: ExitStack,
        callbacks: CallbackListener,
    ) -> None:
        super().__init__(command, outputs)
        self.config = config
        self.ending = ending
        self.callbacks = callbacks

    def prepare(self, prepared: Prepared) -> None:
        """Makes the objects that only this program defines available to its workers.

        Raises:
            ConfigError: the launcher starts workers on other hosts, which cannot get them.
        """
        passing = pass_objects_of_program(
            prepared.definition,
            starts_processes=needs_other_processes(self.config, prepared),
            leaves_host=prepared.launcher.leaves_host,
        )
        self.ending.enter_context(passing)  # available until the study is closed

    @contextmanager
    def attached(self, study: OpenStudy) -> Iterator[None]:
        """Reports on the study as a command does.

        If the config names objects of the script that runs, such as `__main__.Net`, it first
        records which script that is, so that other commands find them.
        """
        if names_script(self.config):
            record_script(study.run_dir)
        if self.callbacks.functions:
            self.callbacks.attach(study.stored)
            self.outputs.listeners.append(self.callbacks)
        with super().attached(study):
            yield


def needs_other_processes(config: StudyConfig, prepared: Prepared) -> bool:
    """Returns True if workers will run in other processes.

    A single worker runs in this process, except with a time limit for trials, or if its launcher
    needs processes. If this process loses its GPU, another one follows it.
    """
    launcher = prepared.launcher
    has_several_workers = launcher.count_workers(2) > 1  # with two open trials
    has_time_limit = config.study.trial_timeout is not None
    return has_several_workers or launcher.needs_processes or has_time_limit


def run_call(
    config: StudyConfig,
    command: Command,
    *,
    quiet: bool,
    notes: Sequence[str],
    callbacks: Sequence[Callback] = (),
) -> OpenStudy:
    """Runs the study of a call from Python, and returns it, closed.

    A signal such as Ctrl-C stops the study in order. Then the caller's handler of the signal runs,
    and a KeyboardInterrupt is raised.

    Args:
        quiet: whether nothing is printed.
        notes: lines that are printed before the first trial.
        callbacks: called with the study and each trial of the search that ends.

    Raises:
        ConfigError: the config has an error.
        KeyboardInterrupt: a signal has stopped it.
        Exception: a callback has raised it.
    """
    if config.study.dry_run:
        raise ConfigError(
            "study.dry_run is for a shell: python -m studies.NAME --dry-run; leave it out"
        )
    error_after_signal: Exception | None = None
    reason: str | None = None
    with Stop(config.study.timeout) as stop, ExitStack() as ending:
        ending.callback(optuna.logging.set_verbosity, optuna.logging.get_verbosity())
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        outputs = Outputs(take_environment())
        outputs.console.quiet = quiet
        outputs.console.lasting = False
        outputs.notes = notes
        listener = CallbackListener(callbacks, stop)
        reporting = CallReporting(command, outputs, config, ending, listener)

        code = 1  # the study could not finish
        try:
            outputs.open()
            # `command` has no fork server, so each worker is a new process: a fork of this process
            # would hang if it has run OpenMP's threads before.
            code = run_study(config, command, reporting, stop, WinnerStages())
        except Exception as raised:
            reason = error_text(raised)
            if stop.signal is None:
                raise
            error_after_signal = raised
        finally:
            if reporting.study is None:  # it was not opened: an error that the user can fix
                code = 2
            outputs.finish(find_exit_code(code, stop), reason)

    if stop.signal is not None:
        # The caller's handler of the signal, which is installed again, gets it now. Python's own
        # handler raises a KeyboardInterrupt without a message.
        with suppress(KeyboardInterrupt):
            signal.raise_signal(stop.signal)
        message = f"the study was stopped; {command.resumes} it"
        raise KeyboardInterrupt(message) from error_after_signal
    assert reporting.study is not None
    if listener.error is not None:
        raise listener.error
    return reporting.study
