"""pruner=promotion: what cannot be paused is refused before trial 0, with its way out."""

import pytest
from toys import LOOP, TINY, ask

from studyloom.question.validation import check_sections

COMMAND = (
    "objective._target_=studyloom.extras.integrations.command.Command",
    "+objective.run=python",
    "+objective.value=x",
)
PROMOTION = (*TINY, "pruner=promotion", "train.epochs=3")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("checkpoints.dir=null",), "checkpoints.dir=null"),
        (("train.epochs=2",), "train.epochs must be at least 3"),
        (("pruner.brackets=2",), "pruner.brackets=2; got 3"),
        (("+pruner.steps=jobs", "objective.folds=2"), "pruner.steps=jobs"),
        ((*LOOP, "objective.folds=2"), "objective.folds or objective.seeds"),
        ((*COMMAND, "objective.direction=maximize"), "this objective keeps none"),
    ],
)
def test_what_cannot_be_paused_is_refused_with_its_way_out(overrides, words):
    (mistake,) = check_sections(ask(*PROMOTION, *overrides))
    assert words in mistake


def test_what_can_be_paused_is_not():
    for overrides in ((), LOOP, ("objective.folds=3",)):
        assert [*check_sections(ask(*PROMOTION, *overrides))] == []
