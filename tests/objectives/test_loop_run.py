"""The run of a custom training loop: reports, epochs, and the objects that it keeps."""

from contextlib import suppress

import numpy as np
import pytest
import torch
from torch import nn

from studyloom.errors import UndefinedMetric
from studyloom.objectives.loop_run import LoopJob, Run, RunContext, UnfitState
from studyloom.objectives.objective import Attempt
from studyloom.space.rule import parse_limits


class Reports(list):
    """The reports of a run, and its state after each of them."""

    def __call__(self, step, value, further):
        self.append((step, value, further))
        self.states.append(self.run.state())


def make_run(saved=None, limits=None):
    reports = Reports()
    context = RunContext(0, Attempt(), LoopJob(0, 7))
    limits = {limit.name: limit for limit in parse_limits(limits, None)}
    reports.run = Run(context, "accuracy", reports, limits, saved)
    reports.states = []
    return reports.run, reports


class Plain:
    """An object that takes any state."""

    def __init__(self, state=None):
        self.state = state

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


# Reports


def test_a_report_within_an_epoch_is_sent_at_its_end():
    run, reports = make_run()
    for epoch in run.epochs(2):
        run.report(loss=1 / epoch)
        run.report(accuracy=epoch)
        assert len(reports) == epoch - 1
        assert run.value == epoch
    assert reports == [(1, 1.0, {"loss": 1.0}), (2, 2.0, {"loss": 0.5})]


def test_a_loop_may_choose_the_steps_of_its_reports():
    run, reports = make_run()
    run(0.5, 10)
    run.report(accuracy=0.6)
    run.report(accuracy=0.7, step=20)
    assert [step for step, *_ in reports] == [10, 11, 20]
    with pytest.raises(UndefinedMetric, match="step 20: expected an integer from 21 to"):
        run.report(accuracy=0.7, step=20)
    run.report(accuracy=0.7, step=2**31 - 1)
    for step in (2**31, None):  # on SQLite as on PostgreSQL, whose integers end there
        with pytest.raises(UndefinedMetric, match="to 2147483647"):
            run.report(accuracy=0.7, step=step)


def test_a_loop_that_breaks_has_sent_its_reports():
    run, reports = make_run()
    for epoch in run.epochs(10):
        run.report(accuracy=epoch)
        if epoch == 3:
            break
    run.report(accuracy=9)
    assert [step for step, *_ in reports] == [1, 2, 3, 4]


# Objects that a loop keeps


def test_an_object_that_cannot_be_kept_is_named_before_the_first_epoch():
    for part, message in (
        (3, "must have state_dict and load_state_dict; int has no state_dict"),
        (Plain({"a": object()}), r"run.keep\(it=…\)\['a'\].*got object"),
        (Plain({"a": [np.ones(2)]}), "got ndarray"),
    ):
        with pytest.raises(TypeError, match=message):
            make_run()[0].keep(it=part)


def test_a_checkpoint_of_other_code_is_refused_even_if_the_loop_catches_it():
    """The loop may have loaded half of it."""
    two_parts = {"network": nn.Linear(2, 1).state_dict(), "more": {}}
    for states, message in (
        ({"network": {"weight": torch.ones(9)}}, "does not fit run.keep"),
        ({"other": {}}, "there is no network in it"),
        (two_parts, "holds more, which run.keep"),
    ):
        run, reports = make_run({"kept": states, "epoch": 1, "value": 1.0})
        with suppress(UnfitState):
            run.keep(network=nn.Linear(2, 1))
            run.epochs(3)
        for continue_loop in (lambda it=run: it.epochs(3), lambda it=run: it.report(accuracy=1)):
            with pytest.raises(UnfitState, match=message):
                continue_loop()
        assert reports == []
