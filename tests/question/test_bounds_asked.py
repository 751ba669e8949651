"""Mistakes in what ends a search early: named before trial 0, each with the way out."""

import pytest
from toys import LOOP, TWO, ask

from studyloom.question.validation import check_sections

pytestmark = pytest.mark.usefixtures("composing")
STOP = ("study.stop=regret", "study.regret=0.005")
BY_COST = (
    "objective.constraints={parameters: '<= 100_000'}",
    "winner.rule='min parameters where accuracy > 0.9'",
)
MISTAKES = {
    ("study.regret=0.005",): "study.stop=regret and study.regret, such as 0.005",
    ("study.stop=regret",): "go together; set both or none",
    ("study.stop=regrets",): "study.stop must be regret, or null; got regrets; did you mean regr",
    (STOP[0], "study.regret=0"): "study.regret must be a positive number, or null; got 0.0",
    (STOP[0], "study.regret=inf"): "study.regret must be a positive number, or null; got inf",
    (*STOP, "sampler=grid"): "sampler=grid tries each point of a list; set study.stop=null",
    (*TWO, *STOP): "in one value, and objective.metric names 2; set study.stop=null",
    (*STOP, *BY_COST): "winner.rule chooses by parameters, and not by accuracy; set study.stop=nu",
    ("study.epochs=0",): "study.epochs must be at least 1; got 0",
    ("study.epochs=5",): "study.epochs must be at least train.epochs=6, the epochs of one trial",
    ("study.epochs=50", "pruner=wilcoxon", "objective.folds=3"): "with pruner=wilcoxon trials rep",
}
FINE = (
    STOP,
    ("study.epochs=10",),
    ("study.epochs=40", "sampler=grid"),
    (*LOOP, "study.epochs=3", "objective.metric=[accuracy]", *STOP),  # its epochs are its own
)


def mistakes_of(overrides):
    """Those of a config; keys of the study are set on a copy, since composing takes 0.1 s."""
    study = [override for override in overrides if override.startswith("study.")]
    question = ask(*(override for override in overrides if override not in study))
    question.config.merge_with_dotlist(study)
    return [*check_sections(question)]


def test_a_mistake_is_named_with_the_way_out_and_nothing_else_is_one():
    for overrides, words in MISTAKES.items():
        (mistake,) = mistakes_of(overrides)
        assert words in mistake
    for overrides in FINE:
        assert mistakes_of(overrides) == []
    wrong = ("study.stop=regret", "study.regret=-1", "study.epochs=0", "sampler=grid")
    assert len(mistakes_of(wrong)) == 3
