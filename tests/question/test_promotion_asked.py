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


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("checkpoints.dir=null",), ["checkpoints.dir=null", "name a folder"]),
        (("train.epochs=2",), ["train.epochs must be at least 3", "got 2", "pruner=asha"]),
        (("pruner.brackets=2",), ["train.epochs must be at least 9", "pruner.brackets=2; got 3"]),
        (("+pruner.steps=jobs", "objective.folds=2"), ["pruner.steps=jobs", "one after the other"]),
        ((*LOOP, "objective.folds=2"), ["objective.folds or objective.seeds", "pruner=asha"]),
        (
            (
                "objective._target_=test_promotion_asked.reports_alone",
                "objective.direction=maximize",
            ),
            ["objective._target_=test_promotion_asked.reports_alone", "call run.keep(net=…)"],
        ),
        (
            (
                "objective._target_=studyloom.extras.integrations.command.Command",
                "+objective.run='python x.py'",
                "+objective.value=x",
                "objective.direction=maximize",
            ),
            ["objective._target_=studyloom.extras.integrations.command.Command", "keeps none"],
        ),
    ],
)
def test_what_cannot_be_paused_is_refused_with_its_way_out(overrides, words):
    (mistake,) = check_sections(ask(*PROMOTION, *overrides))
    assert all(word in mistake for word in words), mistake
    assert "\n" not in mistake


@pytest.mark.parametrize("overrides", [(), LOOP, ("objective.folds=3",), ("objective.seeds=2",)])
def test_what_can_be_paused_is_not(overrides):
    assert [*check_sections(ask(*PROMOTION, *overrides))] == []


def test_a_function_is_told_to_keep_nothing_only_if_that_is_certain():
    assert only_reports(reports_alone)
    assert not only_reports(keeps)
    assert not only_reports(hands_on)
    assert not only_reports(len)
