"""Runs whose trials are trained by two ranks."""

import uuid
from pathlib import Path

from commands import QUICK
from runs import EPOCHS, Run

TRIALS = 3
RANKS = (
    *(*QUICK, "model._target_=gate.Net", f"train.epochs={EPOCHS}", f"study.trials={TRIALS}"),
    *("launcher.workers=1", "launcher.ranks=2", "study.lease=5"),
)


class RanksRun(Run):
    """A run of one worker with two ranks."""

    def __init__(self, folder, url, *overrides):
        super().__init__(folder, url, (*RANKS, *overrides), trials=TRIALS)

    def at_work(self, *overrides, starter=None, **environment):
        """Starts a command, and returns when both ranks wait in the second epoch of a trial.

        Returns:
            The process, its ranks by their number, and a function that lets them go on.
        """
        gate = self.folder.with_name(f"gate-{uuid.uuid4().hex}")
        process = (starter or self.start)(*overrides, STUDYLOOM_TEST_GATE=str(gate), **environment)

        def waits(stored):
            held = {slot.trial_id for slot in stored.ledger.held()}
            begun = [trial for trial in stored.trials() if trial.intermediate_values]
            return any(trial._trial_id in held for trial in begun)

        self._until(waits)
        (slot,) = self.stored().ledger.held()
        first = int(slot.owner.rpartition(":")[2])
        found = [first, *below(first)]
        assert len(found) == 2
        return process, found, gate.touch

    def until(self, condition):
        self._until(lambda stored: condition())

    def reports(self):
        """All values that trials have reported."""
        return [value for trial in self.stored().trials() for value in trial.intermediate_values]


def below(pid):
    """The children of a process, without shells and what else is no rank."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children]


def losses(stored):
    return [trial.user_attrs["epochs"]["valid_loss"] for trial in stored.trials()]
