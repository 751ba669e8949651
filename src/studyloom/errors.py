"""Every exception of studyloom, in one tree.

* StudyloomError
  · UserError, a ValueError too
    + ConfigError
    + DataError
      - UnfitData
    + FileError
    + ScaffoldError
    + PredictError
    + DefinitionError
    + UndefinedMetric
    + StorageError
      - ServerError
      - StorageLost
  · Halted
    + UndefinedObjective
  · LaunchError
    + BrokenProcess
  · NoWinner
  · ClaimLost
    + TrialDeleted
  · TimedOut
  · LoaderDied
  · Infeasible
  · CommandFailed
  · Diverged
  · UndrawnReport
* Stopped, Paused: no Exception, so that `except Exception` in a user's code lets them pass
* Interrupted, a KeyboardInterrupt

A UserError names the value, where it came from and how to fix it. Most commands that raise an error
end with its `exit_code`; `cli.main` and `commands.run_study` say which end with another.
"""

from collections.abc import Sequence
from typing import ClassVar

# The end of errors about shapes and types of data, networks and losses.
TRAIN_IT_YOURSELF = "or train it yourself: studyloom new NAME --kind loop"


class StudyloomError(Exception):
    """The root of all errors that studyloom raises on purpose."""

    exit_code: ClassVar[int] = 1


class UserError(StudyloomError, ValueError):
    """An error that the user can fix: in a configuration, a file, or an argument.

    Attributes:
        errors: every error found, one line each.
    """

    exit_code = 2

    def __init__(self, errors: str | Sequence[str]) -> None:
        if isinstance(errors, str):
            errors = [errors]
        self.errors = list(errors)
        super().__init__("\n".join(self.errors))


class ConfigError(UserError):
    """All errors found in a configuration or a search space."""


def list_messages(error: BaseException, otherwise: str) -> list[str]:
    """Returns the messages of an error that the user can fix, or `otherwise` for another error."""
    if isinstance(error, UserError):
        return error.errors
    return [otherwise]


def raise_if_any(errors: Sequence[str]) -> None:
    """Raises ConfigError with the messages, each of them once, if there are any."""
    if errors:
        raise ConfigError(list(dict.fromkeys(errors)))


class DataError(UserError):
    """A data set is missing or damaged, or differs from its description."""


class UnfitData(DataError):
    """Networks are not trained on data of these shapes or types; the message says how to fix it."""

    def __init__(self, message: str) -> None:
        super().__init__(or_train_it_yourself(message))


class FileError(UserError):
    """A file is not written: its path is wrong, or another file at the path would be lost."""


class ScaffoldError(UserError):
    """`studyloom new` cannot use this name or this folder."""


class PredictError(UserError):
    """There is no winner, or a file holds no input for it."""


class DefinitionError(UserError):
    """The stored study of the same name has another definition."""


class UndefinedMetric(UserError):
    """A metric or an objective is not a finite number."""


class StorageError(UserError):
    """The database cannot be used. The message never has its password."""


class ServerError(StorageError):
    """The embedded PostgreSQL server is missing or does not start."""


class StorageLost(StorageError):
    """The database failed, or stayed away for longer than the deadline.

    Attributes:
        is_transient: whether another try may succeed; False for all that reaches a caller of a
            storage.
        connection_broke: whether an open connection broke, for a reason other than its transaction.
        waited: the seconds spent on retries.
    """

    exit_code = 1

    def __init__(
        self,
        message: str,
        *,
        is_transient: bool = False,
        connection_broke: bool = False,
        waited: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.is_transient = is_transient
        self.connection_broke = connection_broke
        self.waited = waited


class Halted(StudyloomError, RuntimeError):
    """The study stopped itself because its trials all fail for the same reason."""


class UndefinedObjective(Halted):
    """The study stopped itself because its objective is not a finite number."""

    exit_code = 2


class LaunchError(StudyloomError, RuntimeError):
    """No worker can be started, or all workers died before the budget was used."""


class BrokenProcess(LaunchError):
    """A trial, which has ended, has left this process unable to use its GPU.

    Another process can continue the study.
    """

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: another try may succeed


class NoWinner(StudyloomError, RuntimeError):
    """Trainings or tests of the candidates failed, so that there is no winner."""


class ClaimLost(StudyloomError):
    """Another worker holds the slot that this worker held before."""


class TrialDeleted(ClaimLost):
    """Another program has deleted the trial of this worker's slot."""


class TimedOut(StudyloomError):
    """A trial took longer than study.trial_timeout."""


class LoaderDied(StudyloomError, RuntimeError):
    """A process that loads the batches of a trial has died."""


class Infeasible(StudyloomError):
    """A network costs more than objective.constraints allows, and is not trained."""


class CommandFailed(StudyloomError):
    """The user's command ended with an error, or printed no value.

    Args:
        message: one line.
        output: the last lines that it printed.
    """

    def __init__(self, message: str, output: str = "") -> None:
        super().__init__(message)
        self.output = output


class Diverged(StudyloomError, ArithmeticError):
    """A loss is no longer finite.

    Args:
        job: the position in the list of jobs, from 0.
        epoch: the epoch of the loss, from 1.
        epochs: the number of epochs of the job.
        part: train or valid, the set of the loss.
        loss: the value.
    """

    def __init__(self, job: int, epoch: int, epochs: int, part: str, loss: float) -> None:
        super().__init__(job, epoch, epochs, part, loss)
        self.job = job
        self.epoch = epoch
        self.epochs = epochs
        self.part = part
        self.loss = loss

    def __str__(self) -> str:
        return (
            f"{self.part} loss is {self.loss} at epoch {self.epoch} of {self.epochs}; "
            "a lower learning rate or train.clip_norm=1.0 may help"
        )


class UndrawnReport(StudyloomError):
    """The report cannot be written; the study's results are unaffected."""

    exit_code = 0


class Stopped(BaseException):
    """The worker received a request to stop, and releases its trial.

    Not an Exception, and so not in the tree: `except Exception` in a user's code lets it pass.
    """


class Paused(BaseException):
    """A trial has reached a rung and waits there, its state saved, until it is promoted.

    It is not an Exception, for the same reason as `Stopped`.
    """


class Interrupted(KeyboardInterrupt):
    """A second signal came: the worker stops at once.

    The class distinguishes it from a KeyboardInterrupt that the user's code raises.
    """


def or_train_it_yourself(message: str) -> str:
    """Adds to a message that any training can be a custom loop, unless it says so already."""
    if TRAIN_IT_YOURSELF in message:
        return message
    return f"{message}; {TRAIN_IT_YOURSELF}"
