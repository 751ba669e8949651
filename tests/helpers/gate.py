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
