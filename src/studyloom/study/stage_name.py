"""The name of the study that has the trainings of a later stage.

It is STUDY/TITLE TRIALS-TOP-SEEDS, followed by what else changes the trainings, such as a rule:
`mnist/re-evaluation 40-5-3 max accuracy where parameters <= 10000`.
"""

import re
from dataclasses import dataclass, replace

import msgspec

PATTERN = re.compile(
    r"(?P<study>[^/]*)/(?P<title>[\w-]+) "
    r"(?P<trials>\d+)-(?P<top>\d+)-(?P<seeds>\d+)(?: (?P<details>.*))?"
)


@dataclass(frozen=True)
class StageName:
    """Names the study of a later stage by all that its trainings depend on.

    Args:
        study: the name of the search.
        trials: the budget of the search.
        top: how many trials of the search are candidates, beside the baseline.
        seeds: how many seeds each candidate is trained with.
        details: what else changes the trainings; "" for nothing.
    """

    study: str
    title: str
    trials: int
    top: int
    seeds: int
    details: str = ""

    def __str__(self) -> str:
        numbers = f"{self.trials}-{self.top}-{self.seeds}"
        return f"{self.study}/{self.title} {numbers} {self.details}".rstrip()

    def with_detail(self, detail: str) -> "StageName":
        return replace(self, details=f"{self.details} {detail}".lstrip())

    @classmethod
    def parse(cls, name: str) -> "StageName | None":
        """Reads the name of a study; None if it is not that of a later stage."""
        match = PATTERN.fullmatch(name)
        return None if match is None else msgspec.convert(match.groupdict(""), cls, strict=False)


def owner_of(name: str) -> str | None:
    """Returns the study whose later stage has this name; None if it is the name of a search.

    No name that a user gives has a slash.
    """
    owner, slash, _ = name.partition("/")
    return owner if slash else None
