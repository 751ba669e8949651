"""pruner=promotion: what cannot be paused is refused before trial 0, with its way out."""

import pytest
from toys import LOOP, TINY, ask

from studyloom.question.sources import only_reports
from studyloom.question.validation import check_sections

PROMOTION = (*TINY, "pruner=promotion", "train.epochs=3")


def reports_alone(config, run):
    for step in range(3):
        run(0.5, step)
    return 0.5


def keeps(config, run):
    run.keep(net=None)
    return 0.5


def hands_on(config, run):
    return reports_alone(config, run)


OWN = "objective._target_=test_promotion_asked.reports_alone"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("checkpoints.dir=null",), "checkpoints.dir=null"),
        (("train.epochs=2",), "train.epochs must be at least 3"),
        (("pruner.brackets=2",), "pruner.brackets=2; got 3"),
        (("+pruner.steps=jobs", "objective.folds=2"), "pruner.steps=jobs"),
        ((*LOOP, "objective.folds=2"), "objective.folds or objective.seeds"),
        ((OWN, "objective.direction=maximize"), "call run.keep(net=…)"),
    ],
)
def test_what_cannot_be_paused_is_refused_with_its_way_out(overrides, words):
    (mistake,) = check_sections(ask(*PROMOTION, *overrides))
    assert words in mistake


def test_what_can_be_paused_is_not():
    for overrides in ((), LOOP, ("objective.folds=3",)):
        assert [*check_sections(ask(*PROMOTION, *overrides))] == []


def test_a_function_is_told_to_keep_nothing_only_if_that_is_certain():
    assert only_reports(reports_alone)
    assert not only_reports(keeps)
    assert not only_reports(hands_on)
    assert not only_reports(len)
