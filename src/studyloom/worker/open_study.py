"""A study that is prepared from its config, and one that is open in its database."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from studyloom.data.training_data import TrainingData
from studyloom.decisions.strategy import Strategy
from studyloom.decisions.warm_start import WarmStarts
from studyloom.definition.definition import Definition
from studyloom.errors import ConfigError
from studyloom.storage.command_record import StoredCommand
from studyloom.storage.opening import check_definition
from studyloom.storage.stored_study import StoredStudy
from studyloom.worker.callbacks import TrialCallback
from studyloom.worker.stage import Stage
from studyloom.worker.task import Launcher


@dataclass(frozen=True)
class Prepared:
    """The objects that a config describes.

    Args:
        data: the training data, on the device of this process if studyloom trains networks.
        url: the storage URL.
        warm_starts: the configurations of earlier studies that are tried first.
        callbacks: the callbacks that get each trial of the search that ends.
    """

    definition: Definition
    strategy: Strategy
    launcher: Launcher
    data: TrainingData
    url: str
    run_dir: Path
    warm_starts: WarmStarts = field(default_factory=WarmStarts)
    callbacks: Sequence[TrialCallback] = ()


@dataclass(frozen=True)
class OpenStudy:
    """A study that is open in its database: what its config describes, and its search."""

    prepared: Prepared
    search: Stage

    @property
    def stored(self) -> StoredStudy:
        """The stored study of the search."""
        return self.search.stored

    @property
    def definition(self) -> Definition:
        return self.prepared.definition

    @property
    def data(self) -> TrainingData:
        return self.prepared.data

    @property
    def run_dir(self) -> Path:
        return self.prepared.run_dir

    def check_definition(self) -> None:
        """Checks that the stored study has the definition of the config.

        Raises:
            DefinitionError: it has another one.
        """
        stored = self.stored
        identity = self.definition.identity(self.data.digest)
        check_definition(stored.name, stored.definition(), identity)

    def check_budget(self) -> None:
        """Checks that no command has raised the budget while this one waited in its queue.

        This one would end the study after its own, fewer trials.

        Raises:
            ConfigError: a command has raised it.
        """
        record = StoredCommand.read(self.stored).record
        trials = self.search.trials
        if record is not None and record.trials > trials:
            raise ConfigError(
                f"study.trials={trials}: another command has raised it to {record.trials} while "
                "this one waited in its queue; the workers of that command run the study"
            )

    def close(self) -> None:
        """Closes the connections; the last one of a SQLite file removes its two side files."""
        self.stored.close()


class Stages:
    """The stages of a study: the search, and in a subclass the trainings that follow it."""

    def find_next(self, study: OpenStudy) -> Stage | None:
        """Returns the first stage that has work; None if none has."""
        if not study.search.count_open_trials():
            return None
        return study.search

    def find_begun(self, study: OpenStudy) -> list[Stage]:
        """Returns the stages that have begun, in their order."""
        return [study.search]
