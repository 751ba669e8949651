"""Objectives that do to their process what no objective should, each named by a parameter."""

import argparse
import multiprocessing
import operator
import os
import signal
import subprocess
import sys
import threading
import time

import torch


def leave_thread():
    threading.Thread(target=time.sleep, args=(600,)).start()


def leave_process():
    subprocess.Popen(["sleep", "600"])


def parse():
    """Reads a command line, which is not ours."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, default=0.5)
    assert vars(parser.parse_args()) == {"lr": 0.5}


def use_pool():
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(operator.neg, [1, 2, 3]) == [-1, -2, -3]


def break_gpu():
    """Fails like a kernel of CUDA, after which each later call in this process fails likewise."""
    BROKEN.append("CUDA error: device-side assert triggered")
    raise RuntimeError(BROKEN[0])


BROKEN = []  # what has broken the GPU for this process
DEEDS = {
    "nothing": lambda: None,
    "exit 0": lambda: sys.exit(0),
    "_exit 0": lambda: os._exit(0),
    "SIGTERM": lambda: signal.raise_signal(signal.SIGTERM),
    "SIGINT": lambda: os.kill(os.getpid(), signal.SIGINT),
    "thread": leave_thread,
    "process": leave_process,
    "argparse": parse,
    "pool by fork": use_pool,
    "device-side assert": break_gpu,
}


def objective(config, report):
    """Does a deed between two reports."""
    report(0.0, 0)
    if BROKEN:
        raise RuntimeError(BROKEN[0])
    DEEDS[config.params.deed]()
    report(1.0, 1)
    return float(len(config.params.deed))


class Net(torch.nn.Linear):
    """A network that ends its process, where and as the environment says."""

    def __init__(self, shape, outputs):
        super().__init__(784, outputs)
        self.fitted = False
        self.end("constructor")

    def end(self, place):
        if place == os.environ.get("STUDYLOOM_TEST_PLACE"):
            DEEDS[os.environ["STUDYLOOM_TEST_DEED"]]()

    def forward(self, images):
        self.fitted |= self.training
        if len(images) > 2 and not self.fitted:
            self.end("test")
        return super().forward(images.flatten(1))
