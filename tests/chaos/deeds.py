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

import hydra
import optuna
import torch
from optuna.exceptions import UpdateFinishedTrialError

from studyloom.errors import ClaimLost, StorageLost


class Odd(BaseException):
    """What a library may derive its exceptions from."""


def raising(error):
    def deed():
        raise error

    return deed


def leave_thread():
    threading.Thread(target=time.sleep, args=(600,)).start()


def leave_process():
    subprocess.Popen(["sleep", "600"])


def parse():
    """Reads a command line, which is not ours."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, default=0.5)
    assert vars(parser.parse_args()) == {"lr": 0.5}


def parse_wrongly():
    """Ends the process with 2, as argparse does."""
    argparse.ArgumentParser().parse_args(["--what"])


def compose():
    """Uses Hydra, which is not ours either."""
    with hydra.initialize(version_base=None, config_path=None):
        assert hydra.compose(overrides=["+a=1"]) == {"a": 1}


def processes(method):
    def deed():
        with multiprocessing.get_context(method).Pool(2) as pool:
            assert pool.map(operator.neg, [1, 2, 3]) == [-1, -2, -3]

    return deed


def load():
    """Reads a data set by worker processes of a DataLoader."""
    data = torch.utils.data.TensorDataset(torch.arange(6))
    batches = torch.utils.data.DataLoader(data, batch_size=2, num_workers=2)
    assert [batch.tolist() for (batch,) in batches] == [[0, 1], [2, 3], [4, 5]]


DEEDS = {
    "nothing": lambda: None,
    "exit 0": lambda: sys.exit(0),
    "exit 3": lambda: sys.exit(3),
    "_exit 0": lambda: os._exit(0),
    "_exit 3": lambda: os._exit(3),
    "KeyboardInterrupt": raising(KeyboardInterrupt()),
    "GeneratorExit": raising(GeneratorExit()),
    "Odd": raising(Odd("very")),
    "SIGTERM": lambda: signal.raise_signal(signal.SIGTERM),
    "SIGINT": lambda: os.kill(os.getpid(), signal.SIGINT),
    "pruned": raising(optuna.TrialPruned()),
    "UpdateFinishedTrialError": raising(UpdateFinishedTrialError("trial 5 has ended")),
    "StorageLost": raising(StorageLost("another database")),
    "ClaimLost": raising(ClaimLost()),
    "thread": leave_thread,
    "process": leave_process,
    "argparse": parse,
    "wrong arguments": parse_wrongly,
    "hydra": compose,
    "pool by fork": processes("fork"),
    "pool by spawn": processes("spawn"),
    "loader": load,
}


def objective(config, report):
    """Does a deed between two reports."""
    report(0.0, 0)
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
