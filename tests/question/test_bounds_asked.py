"""Mistakes in what ends a search early: named before trial 0, each with the way out."""

import pytest
from toys import LOOP, TWO, ask

from studyloom.question.validation import check_sections

pytestmark = pytest.mark.usefixtures("composing")
STOP = ("study.stop=regret", "study.regret=0.005")


def mistakes_of(overrides):
    """Those of a config; keys of the study are set on a copy, since composing takes 0.1 s."""
    study = [override for override in overrides if override.startswith("study.")]
    question = ask(*(override for override in overrides if override not in study))
    question.config.merge_with_dotlist(study)
    return [*check_sections(question)]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["study.regret=0.005"],
            "study.regret=0.005 has no effect without study.stop=regret; add that, or leave "
            "study.regret out",
        ),
        (
            ["study.stop=regrets"],
            "study.stop must be regret, or null; got regrets; did you mean regret?",
        ),
        (
            ["study.stop=regret"],
            "study.stop=regret needs study.regret, the gain that further trials are not worth, in "
            "units of the metric, such as study.regret=0.005",
        ),
        *(
            (
                ["study.stop=regret", f"study.regret={value}"],
                "study.regret must be a positive number, in units of the metric, such as 0.005; "
                f"got {float(value)}",
            )
            for value in ("0", "-0.1", "nan", "inf")
        ),
        (
            [*STOP, "sampler=grid"],
            "study.stop=regret asks what further trials gain by what the earlier ones did, and "
            "sampler=grid tries each point of a list; set study.stop=null, and bound the search by "
            "study.trials or study.epochs, or choose another sampler, such as sampler=random",
        ),
        (
            [*TWO, *STOP],
            "study.stop=regret asks what further trials gain in one value, and there are 2, "
            "objective.metric=[accuracy, parameters]; set study.stop=null, and bound the search by "
            "study.trials or study.epochs",
        ),
        (
            [
                *STOP,
                "objective.constraints={parameters: '<= 100_000'}",
                "winner.rule='min parameters where accuracy > 0.9'",
            ],
            "study.stop=regret asks what further trials gain in accuracy, and winner.rule chooses "
            "by parameters; set study.stop=null, or have winner.rule choose by accuracy",
        ),
        *(
            (
                [f"study.epochs={value}"],
                "study.epochs must be a positive number of epochs of all trials, or null for no "
                f"limit; got {value}",
            )
            for value in (0, -5)
        ),
        (
            ["study.epochs=5"],
            "study.epochs must be at least train.epochs=6, the epochs of one trial; got 5",
        ),
        (
            ["study.epochs=50", "pruner=wilcoxon", "objective.folds=3"],
            "study.epochs counts epochs, and with pruner=wilcoxon trials report whole folds and "
            "seeds; choose another pruner, such as pruner=median, or bound the search by "
            "study.trials or study.timeout",
        ),
    ],
)
def test_a_mistake_is_named_with_the_way_out(overrides, words):
    assert mistakes_of(overrides) == [words]


@pytest.mark.parametrize(
    "overrides",
    [
        STOP,
        ["study.epochs=10"],
        ["study.epochs=40", "sampler=grid"],
        [*LOOP, "study.epochs=3", "objective.metric=[accuracy]", *STOP],  # its epochs are its own
    ],
)
def test_what_can_be_asked_is_no_mistake(overrides):
    assert mistakes_of(overrides) == []


def test_several_mistakes_are_named_at_once():
    wrong = ("study.stop=regret", "study.regret=-1", "study.epochs=0", "sampler=grid")
    assert len(mistakes_of(wrong)) == 3
