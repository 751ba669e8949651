"""Runs whose trials are trained by two ranks."""

import signal
from pathlib import Path

from commands import QUICK
from live_processes import until
from runs import EPOCHS, Run, holder, kill

TRIALS = 3
RANKS = (
    *(*QUICK, "model._target_=gate.Net", f"train.epochs={EPOCHS}", f"study.trials={TRIALS}"),
    *("launcher.workers=1", "launcher.ranks=2", "study.lease=5"),
)


class RanksRun(Run):
    """A run of one worker with two ranks."""

    at_once = 1

    def __init__(self, folder, url, *overrides):
        super().__init__(folder, url, (*RANKS, *overrides), trials=TRIALS)

    def ranks(self):
        """The processes of the ranks at work, by their number.

        A worker that goes on with a trial holds it before its second rank has started.
        """
        (slot,) = self.stored().ledger.held()
        first = holder(slot)
        until(lambda: len(below(first)) == 1, 20)
        return [first, *below(first)]

    def kill_rank_1(self):
        """Kills the second rank; returns once both have ended."""
        ranks = self.ranks()
        kill(ranks[1:], signal.SIGKILL)
        until(lambda: not {*ranks} & {*self.processes()}, 20)


def below(pid):
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children]


def losses(stored):
    return [trial.user_attrs["epochs"]["valid_loss"] for trial in stored.trials()]
