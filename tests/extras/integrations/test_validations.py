"""What a trainer logs becomes reports, and what it lacks is named; without any of the libraries."""

import math
import re
import sys
from importlib import import_module

import pytest
import torch

from studyloom.errors import UndefinedMetric
from studyloom.extras.integrations import Validations
from studyloom.installation import pip_install
from studyloom.objectives.loop_run import LoopJob, Run, RunContext
from studyloom.objectives.objective import Attempt


@pytest.fixture
def sent():
    return []


@pytest.fixture
def run(sent):
    place = RunContext(0, Attempt(), LoopJob(0, 1))
    return Run(place, "accuracy", lambda *report: sent.append(report))


def validations(run):
    return Validations(run, "val_acc", "the module", "fit it with a val_dataloader")


def test_the_monitored_value_counts_and_other_finite_numbers_are_curves(run, sent):
    shown = validations(run)
    shown.begin(2)
    # A quantity with the name of the metric, which another is compared as, would be taken for it.
    logged = {"loss": torch.tensor(2.0), "val_acc": 0.5, "accuracy": 1.0, "seconds": 3.0}
    shown.report(logged | {"odd": math.nan})
    assert sent == []
    assert not shown.is_last
    shown.finish()
    assert sent == [(1, 0.5, {"loss": 2.0})]
    assert shown.is_last
    assert run.value == 0.5


def test_a_name_that_is_not_logged_or_no_validation_is_an_error(run):
    shown = validations(run)
    shown.begin(2)
    with pytest.raises(UndefinedMetric, match=r"logs no val_acc .* expected one of loss, val_loss"):
        shown.report({"val_loss": 1.0, "loss": 2.0})
    with pytest.raises(UndefinedMetric, match=r"has never validated.*; fit it with a val_dataload"):
        shown.end()


def test_a_report_without_a_checkpoint_after_it_is_sent_at_the_end(run, sent):
    shown = validations(run)
    shown.begin(None)
    shown.report({"val_acc": 0.5})
    shown.end()
    assert [report[:2] for report in sent] == [(1, 0.5)]
    assert shown.number is None


@pytest.mark.parametrize("library", ["lightning", "transformers", "accelerate"])
def test_a_missing_library_is_named_with_its_extra(monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    for name in [name for name in sys.modules if name.startswith(f"{library}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, f"studyloom.extras.integrations.{library}", raising=False)
    extra = re.escape(pip_install(library))
    with pytest.raises(ModuleNotFoundError, match=extra):
        import_module(f"studyloom.extras.integrations.{library}")
