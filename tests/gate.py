"""A network that waits in its fourth step for a file, so that tests meet running trials."""

import os
import time

from studyloom.models import MLP


class Net(MLP):
    steps = 0

    def forward(self, images):
        gate = os.environ.get("STUDYLOOM_TEST_GATE")
        self.steps += self.training
        while gate and self.steps == 4 and not os.path.exists(gate):
            time.sleep(0.01)
        return super().forward(images)


class Counted(Net):
    """The same, and each rank counts its steps in a file; one rank may fail in one of them.

    `STUDYLOOM_TEST_STEPS` is the folder of the files, and `STUDYLOOM_TEST_FAIL` names the rank and
    the step, counted over all trials of the process: `1 5`.
    """

    total = 0

    def forward(self, images):
        outputs = super().forward(images)
        if self.training:
            rank = os.environ.get("RANK", "alone")
            Counted.total += 1
            with open(os.path.join(os.environ["STUDYLOOM_TEST_STEPS"], rank), "a") as file:
                file.write(f"{len(images)}\n")
            if os.environ.get("STUDYLOOM_TEST_FAIL") == f"{rank} {Counted.total}":
                raise ArithmeticError(f"rank {rank} has failed in step {Counted.total}")
        return outputs
