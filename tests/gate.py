"""A network that waits in its fourth step until a file is there: so a test meets trials at work, fast as they are."""

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
