"""A stage of a run: the search, or trainings that follow it, each a study in the same database."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from studyloom.study.early_end import ending
from studyloom.study.stored_study import StoredStudy
from studyloom.study.strategy import TrialStrategy
from studyloom.study.trial_files import TrialFiles
from studyloom.study.trial_source import TrialSource

SEARCH = "search"  # the title of the first stage


@dataclass(frozen=True)
class Stage:
    """One stage of a run: a stored study, where its trials come from, and how they are chosen.

    Args:
        weights: the folder for the trained networks; None to keep none.
    """

    title: str
    stored: StoredStudy
    source: TrialSource
    strategy: TrialStrategy
    trials: int
    weights: Path | None = None

    def todo(self) -> int:
        """Returns how many trials have not ended yet."""
        ended = ending(self.stored, self.trials) is not None
        return self.stored.ledger.todo(self.trials, begun=ended)

    def remove_left_files(self, folder: str | None) -> None:
        """Removes the files in a folder of trials whose worker died after their end."""
        if folder is not None:
            files = TrialFiles(Path(folder), self.stored.name, self.source.seed)
            files.remove_left(self.stored.trials, self.source.space)


class Stages(Protocol):
    """The stages of a run; each is known once those before it have ended."""

    def __iter__(self) -> Iterator[Stage]:
        """Yields the stages up to the first that has not ended yet."""

    def todo(self) -> int:
        """Returns how many trials are left at most, in all stages."""

    def close(self) -> None:
        """Closes the connections to the database."""


@dataclass(frozen=True)
class SearchOnly:
    """The stages of a run that ends with its search."""

    search: Stage

    def __iter__(self) -> Iterator[Stage]:
        yield self.search

    def todo(self) -> int:
        return self.search.todo()

    def close(self) -> None:
        self.search.stored.close()
