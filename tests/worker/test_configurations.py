"""The configurations that a search tries keep to `space.where`; each is tried once if asked."""

import pytest
from optuna.trial import TrialState
from toy_worker import RANDOM, fresh, outcomes, work, work_side_by_side
from toys import ask

from studyloom.decisions.strategy import Strategy
from studyloom.errors import Halted
from studyloom.space.drawing_configurations import identify
from studyloom.storage.attributes import REASON
from studyloom.worker import slots
from studyloom.worker.worker import NO_CONFIGURATION

NONE = (*RANDOM[:-3], "space=none", "sampler=random", "pruner=none")
WIDE = ("+space.model.hidden.list.int=[4,64]", "+space.model.hidden.length=1")
SIX = ("+space.train.batch_size.choice=[16,32,64]", "+space.model.activation.choice=[relu,tanh]")


def where(*relations: str) -> str:
    return f"+space.where={[*relations]}"


def test_a_configuration_that_breaks_a_relation_is_drawn_again(url):
    definition = ask(*RANDOM, where("train.batch_size + model.mlp.hidden.0 <= 80"))
    stored = fresh(url, definition, 12)
    for trials in (5, 12):
        work(definition, stored, trials)
    configurations = [trial.params for trial in stored.trials()]
    kept = [p for p in configurations if "model.mlp.hidden.0" in p]
    assert 1 < len(kept) < 12, "it says nothing of the other network"
    assert all(p["train.batch_size"] + p["model.mlp.hidden.0"] <= 80 for p in kept)
    again = fresh(url, definition, 12, name="again")
    work(definition, again, 12)
    assert outcomes(again) == outcomes(stored)


def test_a_random_draw_replaces_a_bad_proposal_or_the_trial_fails(url, monkeypatch):
    relation = where("model.hidden.0 * train.batch_size <= 80")
    definition = ask(*NONE, *WIDE, SIX[0], relation, "study.baseline=false")
    stored = fresh(url, definition, 3)
    work(definition, stored, 3)
    assert {t.params["train.batch_size"] for t in stored.trials()} == {16}
    assert {t.params["model.hidden.0"] for t in stored.trials()} <= {4, 5}
    monkeypatch.setattr(slots, "draw_configuration", lambda *_: None)
    monkeypatch.setattr(slots, "REDRAWS", 0)
    failing = fresh(url, definition, 1, name="failing")
    with pytest.raises(Halted, match=r"space\.where: no configuration was found"):
        work(definition, failing, 1)
    (trial,) = failing.trials()
    assert (trial.state, trial.user_attrs[REASON]) == (TrialState.FAIL, NO_CONFIGURATION)


@pytest.mark.usefixtures("threads_are_workers")
@pytest.mark.parametrize("database", ["sqlite_url", "postgres_url"])
def test_without_repeats_each_configuration_is_trained_once(database, request):
    url = request.getfixturevalue(database)
    definition = ask(*NONE, *SIX, "study.allow_repeats=false", "study.trials=40")
    assert Strategy(definition).trials == 6
    stored = fresh(url, definition, 6)
    work_side_by_side(definition, url, 6, workers=4, allow_repeats=False)
    trials = stored.trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 6
    assert len({identify(trial) for trial in trials}) == 6
    assert trials[0].params == definition.baseline.params
