"""What an expert would say: is the gain real, what mattered, which range is too narrow."""

from dataclasses import replace

import pytest
from made_trials import a_trial
from optuna.distributions import FloatDistribution, IntDistribution
from results import result_of
from snapshots import snapshot_of, trial_of

from studyloom.storage.attributes import COMMAND, SPACE
from studyloom.views.advice import (
    describe_importances,
    describe_narrow_range,
    explain_basis,
    judge_gain,
    list_advice,
    write_wider_range,
)
from studyloom.views.importances import Importances, compute_importances
from studyloom.views.narrow_ranges import NarrowRange
from studyloom.views.snapshot import take_snapshot
from studyloom.winner.statistics import summarize

SNAPSHOT = snapshot_of()
RATE = FloatDistribution(1e-4, 1e-2, log=True)


def make_tested(interval, mean=0.04, **facts):
    difference = {"mean": mean, "interval": interval, "values": (mean, mean, mean)}
    test = {"winner": {"mean": 0.97}, "baseline": {"mean": 0.93}, "difference": difference}
    return result_of(winner={"trial": 4}, test={**test, **facts})


def judge(result, sign=1):
    return judge_gain(result, SNAPSHOT, sign)


def test_a_gain_is_real_if_its_interval_excludes_0_on_the_better_side():
    real = "The gain over the baseline is real: its 95% interval, {}, excludes 0."
    worse = "On the test set the winner is worse than the baseline: "
    for sign in (1, -1):
        better = judge(make_tested(tuple(sorted((sign * 0.03, sign * 0.05))), sign * 0.04), sign)
        text = "+0.0300 to +0.0500" if sign == 1 else "−0.0500 to −0.0300"
        assert better == real.format(text)
        assert judge(make_tested((-0.05, -0.03), -0.04), 1).startswith(worse)
        assert judge(make_tested((0.03, 0.05), 0.04), -1).startswith(worse)


def test_a_gain_may_be_chance_if_its_interval_has_0_in_it():
    interval = "its 95% interval, −0.0100 to +0.0900, has 0 in it."
    text = f"The gain over the baseline may be chance: {interval}"
    assert judge(make_tested((-0.01, 0.09))) == text
    assert "may be chance" in judge(make_tested((0.0, 0.09)))


def test_without_an_interval_it_is_not_known_whether_a_gain_is_real():
    unknown = "Whether the gain over the baseline is real is not known: "
    assert judge(make_tested(None)) == f"{unknown}an interval needs three seeds that differ."
    assert judge(make_tested((0.1, 0.2), used_in_selection=True)).startswith(
        f"{unknown}the winner was chosen by"
    )
    lone = result_of(winner={"trial": 4}, test={"winner": {"mean": 0.97}})
    for result in (lone, result_of(winner={"trial": 4, "mean": 0.9, "values": (0.9,)})):
        assert judge(result) == "No gain is known: there is no baseline to compare the winner with."


COMPARISON = {
    "trial": 4,
    "gain": 0.04,
    "error": 0.01,
    "seeds": 3,
    "margin": 0.02,
    "margin_is_set": False,
}


def test_an_untested_gain_is_judged_on_new_seeds():
    winner = {"trial": 4, "mean": 0.9, "values": (0.9, 0.9, 0.9)}
    won = judge(result_of(winner=winner, comparison=COMPARISON))
    gain = "0.0400 (standard error 0.0100) on 3 new seeds"
    assert won == (
        f"The gain over the baseline is probably real: {gain}, above the margin for chance; no "
        "test has confirmed it."
    )
    own_margin = judge(result_of(winner=winner, comparison={**COMPARISON, "margin_is_set": True}))
    assert own_margin.startswith("Whether the gain over the baseline is real is not known")


def test_a_baseline_that_won_shows_no_gain():
    winner = {"trial": 0, "baseline": True}
    lost = {**COMPARISON, "margin": 0.05}
    assert judge(result_of(winner=winner, comparison=lost)) == (
        "No gain is shown: trial 4 beat the baseline by only 0.0400 (standard error 0.0100) on "
        "3 new seeds, which chance may explain."
    )
    none = "No gain: no trial beat the baseline on new seeds."
    assert judge(result_of(winner=winner)) == none
    assert judge(result_of(winner=winner, comparison={**lost, "gain": -0.1})) == none


@pytest.mark.parametrize(("spread", "verdict"), [(0.001, "more than chance"), (0.05, "within")])
def test_the_lead_of_the_winner_is_compared_with_the_noise_of_a_training(spread, verdict):
    def candidate(trial, middle):
        signs = {4: (1, -1, 0), 7: (-1, 1, 0), 9: (0, 1, -1)}
        values = tuple(middle + spread * sign for sign in signs[trial])
        summary = summarize(values)
        return {"trial": trial, "values": values, "mean": summary.mean, "std": summary.std}

    rows = [candidate(4, 0.95), candidate(7, 0.93), candidate(9, 0.90)]
    result = result_of(winner=rows[0], candidates=rows, comparison=COMPARISON)
    lead = judge(result).partition("confirmed it. ")[2]
    assert lead.startswith("The winner's lead over trial 7 (0.9500 ± ")
    assert " against 0.9300 ± " in lead
    assert verdict in lead
    assert judge(replace(result, candidates=result.candidates[:1])).endswith("has confirmed it.")


def test_it_is_said_why_the_best_of_the_search_is_not_the_winner():
    def candidate(trial, *values):
        return {"trial": trial, "values": values, "mean": sum(values) / 3, "std": 0.01}

    winner = candidate(4, 0.95, 0.96, 0.94)
    rows = [winner, candidate(7, 0.93, 0.94, 0.95), candidate(9, 0.90, 0.91, 0.89)]
    best = trial_of(0.99)
    snapshot = snapshot_of(best=best)
    result = result_of(winner=winner, candidates=rows, comparison=COMPARISON)
    best.number = 9
    fall = "Trial 9, the best of the search, has a worse mean on new seeds. The winner's lead over"
    assert fall in judge_gain(result, snapshot, 1)
    best.number = 7
    once = judge_gain(result, snapshot, 1)
    assert "The winner's lead over trial 7, the best of the search (0.9500 ± " in once
    assert "worse mean" not in once
    rule = "max accuracy where parameters < 50_000"
    costly = result_of(winner={**winner, "costs": {"parameters": 9.0}}, candidates=rows, rule=rule)
    chosen = "The winner was chosen by max accuracy where parameters < 50,000."
    assert chosen in judge_gain(costly, snapshot, 1)


def test_the_best_of_a_search_that_has_ended_is_partly_luck():
    best, baseline = trial_of(0.9), trial_of(0.8)
    best.number = 4
    ended = snapshot_of(free=0, done=40, best=best, baseline=baseline)
    assert judge_gain(None, ended, 1) == (
        "Whether the gain over the baseline is real is not known: the best of 40 trials is partly "
        "luck, and only trainings with new seeds show how much."
    )
    running = snapshot_of(done=39, free=1, best=best, baseline=baseline)
    for snapshot in (
        running,
        snapshot_of(free=0, done=40),
        snapshot_of(free=0, done=1, best=best, baseline=best),
    ):
        assert judge_gain(None, snapshot, 1) == ""


# What mattered


TRIALS = [trial_of(0.5, params={"model": "cnn", "adamw.lr": 0.1, "sgd.lr": 0.2, "width": 3})]
RUNNING = replace(snapshot_of(free=3), trials=TRIALS)
ENDED = replace(snapshot_of(free=0), trials=TRIALS)
SHARES = {"adamw.lr": 0.47, "model": 0.27, "width": 0.16, "sgd.lr": 0.1}


def test_hyperparameters_that_stand_out_are_named_by_their_importance():
    def say(*outstanding, snapshot=ENDED):
        importances = Importances(SHARES, 40, 1, frozenset(outstanding))
        return describe_importances(importances, snapshot)

    for snapshot in (ENDED, RUNNING):
        assert say("adamw.lr", snapshot=snapshot) == "Most important: AdamW learning rate (47%)."
    named = "Most important: AdamW learning rate (47%), then model (27%) and width (16%)."
    assert say("model", "adamw.lr", "width", "sgd.lr") == named
    assert say(snapshot=RUNNING) == ""
    assert say() == (
        "No hyperparameter clearly matters: AdamW learning rate has the largest share, 47%, which "
        "chance may explain."
    )


def test_a_search_that_has_ended_with_few_trials_says_how_many_are_needed():
    few = "Which hyperparameters matter shows from 20 trials with a value on; 9 have one."
    assert describe_importances(Importances(compared=9), ENDED) == few
    assert describe_importances(Importances(compared=9), RUNNING) == ""
    assert describe_importances(Importances(), ENDED) == ""
    assert describe_importances(Importances({"width": 1.0}, 40), ENDED) == ""


def test_a_line_says_why_optuna_dashboard_shows_other_numbers():
    final = explain_basis(Importances(SHARES, 1200))
    assert "1,200 trials" in final
    assert "optuna-dashboard shows other numbers: it takes the best tenth." in final
    at_rung = explain_basis(Importances(SHARES, 40, 2))
    assert "at epoch 2" in at_rung
    assert at_rung.endswith("the best tenth of the complete trials only.")


# Ranges that are too narrow


def narrow(name="optimizer.adamw.lr", distribution=RATE, wider=None):
    if wider is None:
        wider = FloatDistribution(1e-4, 0.1, log=True)
    return NarrowRange(name, distribution, wider, "high", trials=46, at_end=19, best_at_end=4)


def test_the_sentence_counts_the_trials_at_the_end():
    names = ["optimizer.adamw.lr", "optimizer.sgd.lr"]
    assert describe_narrow_range(narrow(), names) == (
        "19 of 46 trials and 4 of the best 5 lie at the upper end of AdamW learning rate, 1e-4 to "
        "1e-2: widen it, in a study of another name."
    )
    all_best = replace(narrow(), best_at_end=5)
    assert "19 of 46 trials and all of the best 5 lie" in describe_narrow_range(all_best, names)


TREE = {
    "optimizer": {"adamw": {"lr": {"float": [1e-4, 1e-2], "log": True, "default": 0.001}}},
    "model": {"hidden": {"list": {"int": [16, 512], "log": True}, "length": {"int": [1, 30]}}},
}
WIDTHS = IntDistribution(16, 2048, log=True)


def test_the_line_to_copy_is_in_the_language_of_the_study(study_of):
    stored = study_of()
    suggested = 'trial.suggest_float("optimizer.adamw.lr", 1e-4, 0.1, log=True)'
    assert write_wider_range(stored, narrow()) == suggested
    layers = narrow("layers", IntDistribution(1, 20), IntDistribution(1, 30))
    assert write_wider_range(stored, layers) == 'trial.suggest_int("layers", 1, 30)'

    stored.optuna.set_user_attr(SPACE, {"tree": TREE, "options": {}})
    override = "study.name=toy-wider 'space.optimizer.adamw.lr.float=[1e-4,0.1]'"
    assert write_wider_range(stored, narrow()) == override
    item = narrow("model.hidden.1", IntDistribution(16, 512, log=True), WIDTHS)
    override = "study.name=toy-wider 'space.model.hidden.list.int=[16,2048]'"
    assert write_wider_range(stored, item) == override
    length = narrow("model.hidden.length", IntDistribution(1, 30), IntDistribution(1, 45))
    override = "study.name=toy-wider 'space.model.hidden.length.int=[1,45]'"
    assert write_wider_range(stored, length) == override

    stored.optuna.set_user_attr(COMMAND, {"trials": 40, "is_call": True})
    line = 'space["optimizer"]["adamw"]["lr"] = sl.Float(1e-4, 0.1, log=True, default=0.001)'
    assert write_wider_range(stored, narrow()) == line
    line = 'space["model"]["hidden"]["list"] = sl.Int(16, 2048, log=True)'
    assert write_wider_range(stored, item) == line


def narrow_trials():
    """Forty trials, of which the best and the sampler's lie at the upper end of the rate."""
    for number in range(40):
        place = 0.15 + 0.6 * number / 40
        if number % 3 == 0:
            place = 0.95 + number % 5 / 100
        rate = 10 ** (-4 + 2 * place)
        params = {"lr": (rate, RATE), "width": (number % 9, IntDistribution(0, 8))}
        yield a_trial(number, accuracy=0.5 + place / 3, params=params)


def test_a_study_gets_at_most_three_sentences(study_of):
    stored = study_of(narrow_trials())
    importances = compute_importances(stored)
    texts = list_advice(stored, take_snapshot(stored), make_tested((0.03, 0.05)), importances)
    assert [advice.text.split()[0] for advice in texts] == ["The", "Most", "14"]
    assert [bool(advice.line) for advice in texts] == [False, False, True]
