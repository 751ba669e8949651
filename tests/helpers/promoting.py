"""A search by promotion on given curves, without training and without a database."""

import random

from studyloom.decisions.asha import AshaPruner
from studyloom.metrics import ACCURACY
from studyloom.storage.standings import DONE, HELD, OPEN, UNCLAIMED, RungReport, Standing

EPOCHS = 27


def order_of(*objectives, **arguments):
    return AshaPruner(**arguments).make_order(objectives or [ACCURACY])


def standing(slot, state, *values, order=None, exempt=False, apart=1, **costs):
    """A slot whose trial has reported these values, one after each `apart` epochs."""
    order = order or order_of()
    steps = [apart * (position + 1) for position in range(len(values))]
    last = steps[-1] if steps else None
    reports = {}
    for rung in order.rungs(last or 0):
        step = next(step for step in steps if step >= rung)
        reports[rung] = RungReport(step, values[steps.index(step)])
    paused = max((report.step for report in reports.values()), default=None)
    return Standing(slot, state, last, reports, exempt, costs, paused)


class Search:
    """A search on curves that are known, by workers that take turns at random."""

    def __init__(self, curves, order, workers=1, seed=0):
        self.curves, self.order, self.fate = curves, order, random.Random(seed)
        self.epochs = dict.fromkeys(range(len(curves)), 0)
        self.state = dict.fromkeys(range(len(curves)), UNCLAIMED)
        self.workers, self.log, self.pruned = workers, [], []

    def standings(self):
        return [
            standing(slot, self.state[slot], *self.curves[slot][:epochs], order=self.order)
            for slot, epochs in self.epochs.items()
        ]

    def complete(self):
        return [slot for slot, epochs in self.epochs.items() if epochs == EPOCHS]

    def run(self):
        at_work = []
        while True:
            if len(at_work) < self.workers and self.claim(at_work):
                continue
            if not at_work:
                return self
            slot = at_work.pop(self.fate.randrange(len(at_work)))
            if self.train(slot):
                at_work.append(slot)

    def claim(self, at_work):
        standings = self.standings()
        chosen = self.order.choose(standings)
        if len(self.log) % 5 == 0:
            shuffled = random.Random(len(self.log)).sample(standings, len(standings))
            assert self.order.choose(shuffled) == chosen, "in any order of reading"
        if chosen is None:
            return False
        if chosen.ends_pruned:
            self.state[chosen.slot] = DONE
            self.pruned.append(chosen.slot)
            return True
        self.log.append(chosen.slot)
        self.state[chosen.slot] = HELD
        at_work.append(chosen.slot)
        return True

    def train(self, slot):
        """Trains an epoch; returns whether the worker goes on with it."""
        self.epochs[slot] += 1
        if self.epochs[slot] == EPOCHS:
            self.state[slot] = DONE
            return False
        if not self.order.pauses_at(slot, self.epochs[slot] - 1, self.epochs[slot]):
            return True
        self.state[slot] = OPEN
        return False
