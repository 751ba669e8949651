"""Trainings that wait in their third epoch for a file, so that tests meet them there."""

import os
import time


def wait(epoch):
    gate = os.environ.get("STUDYLOOM_TEST_GATE")
    while gate and epoch == 2 and not os.path.exists(gate):
        time.sleep(0.01)
