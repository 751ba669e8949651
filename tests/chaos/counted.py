"""The digits that come with the package, with a note of each opening of their test part."""

import os
from dataclasses import dataclass

from studyloom.data import Embedded
from studyloom.data.split import Split


@dataclass(frozen=True)
class Digits(Embedded):
    def test(self) -> Split:
        with open(os.environ["STUDYLOOM_TEST_USES"], "a") as file:
            file.write(f"{os.getpid()}\n")
        return super().test()
