"""The samplers gp and auto: where a Gaussian process chooses, and where TPE does."""

import math

import numpy as np
import optuna
import pytest
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial
from toy_worker import fresh, work
from toys import TINY, TWO, Signal, ask

from studyloom.decisions import auto_sampler, gaussian_process, gaussian_process_sampler
from studyloom.decisions.auto_sampler import RESULTS_TO_CHOOSE_TPE, AutoSampler, read_training_times
from studyloom.decisions.gaussian_process import GaussianProcess, clip_bad_values
from studyloom.decisions.gaussian_process_sampler import (
    MOST_BEST,
    MOST_LATEST,
    MOST_RESULTS,
    GaussianProcessSampler,
)
from studyloom.decisions.samplers import SamplerContext
from studyloom.decisions.strategy import Strategy
from studyloom.space.language import parse_space
from studyloom.space.tree import SuggestedSpace, find_middle
from studyloom.storage.attributes import PROCESSOR_TIME, PROPOSAL_TIME, SAMPLER, TIMES
from studyloom.storage.opening import open_study

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

FLAT = parse_space(
    {
        "x": {"float": [0.0, 1.0]},
        "rate": {"float": [1e-4, 1.0], "log": True},
        "n": {"int": [1, 500], "log": True},
        "few": {"int": [1, 3]},
        "wide": {"int": [0, 300], "step": 7},
        "part": {"float": [0.0, 1.0], "step": 0.01},
        "kind": {"choice": ["a", "b", "c"]},
        "fixed": {"int": [4, 4]},
    },
    lambda group: (),
)
TREE = parse_space(
    {
        "model": {
            "mlp": {"hidden": {"list": {"int": [4, 128]}, "length": {"int": [1, 2]}}},
            "cnn": {"channels": {"float": [0.0, 1.0]}},
        },
        "lr": {"float": [0.0, 1.0]},
    },
    lambda group: ("mlp", "cnn") if group == "model" else (),
)


def value_of(params):
    return -abs(params.get("lr", params.get("x")) - 0.3) + 0.5 * (params.get("model") == "cnn")


def search(space, make, trials, study=None, **attributes):
    """Searches a space with a sampler made for each trial; returns the study."""
    study = study or optuna.create_study(direction="maximize")
    for number in range(trials):
        study.sampler = make(number)
        trial = study.ask()
        params = space.suggest(trial).params
        for name, value in attributes.items():
            trial.set_user_attr(name, value)
        study.tell(trial, value_of(params))
    return study


@pytest.fixture
def proposals(monkeypatch):
    """What the process has proposed, and the spaces that it was given."""
    made = []
    before = GaussianProcess.propose

    def propose(self, study, results, running, space, branches):
        found = before(self, study, results, running, space, branches)
        made.append((found, space, results))
        return made[-1][0]

    monkeypatch.setattr(GaussianProcess, "propose", propose)
    return made


def params(study):
    return [trial.params for trial in study.trials]


def test_tpe_proposes_the_first_ten_trials_and_the_process_the_others(proposals):
    study = search(FLAT, lambda seed: GaussianProcessSampler(SamplerContext(FLAT), seed), 14)
    plain = search(
        FLAT, lambda seed: GaussianProcessSampler(SamplerContext(FLAT, redraws=True), seed), 14
    )
    assert params(study)[:10] == params(plain)[:10]
    assert params(study)[10] != params(plain)[10]
    assert len(proposals) == 4
    for chosen, (made, space, results) in zip(params(study)[10:], proposals, strict=True):
        assert {name: chosen[name] for name in made} == made
        assert space.keys() == FLAT.make_configuration(chosen).params.keys() - {"fixed"}
        assert len(results) >= 10
    assert min(abs(chosen["x"] - 0.3) for chosen in params(study)[10:]) < 0.1


def test_every_value_is_one_of_its_range(proposals):
    search(
        FLAT,
        lambda seed: GaussianProcessSampler(SamplerContext(FLAT), seed, n_startup_trials=2),
        12,
    )
    assert len(proposals) == 10
    for made, space, _ in proposals:
        for name, value in made.items():
            stored = space[name].to_internal_repr(value)
            assert space[name]._contains(stored), (name, value)
            assert type(value) is type(space[name].to_external_repr(stored))


@pytest.mark.parametrize(
    ("distribution", "low", "high"),
    [
        (IntDistribution(1, 500, log=True), 1, 500),
        (IntDistribution(0, 294, step=7), 0, 294),
        (FloatDistribution(0.0, 1.0, step=0.01), 0.0, 1.0),
    ],
)
def test_a_wide_range_is_searched_smoothly_and_rounded(distribution, low, high):
    smooth = gaussian_process._smooth_distribution(distribution)
    assert isinstance(smooth, FloatDistribution)
    assert smooth.step is None
    assert smooth.log == distribution.log
    assert gaussian_process._round_value(distribution, smooth.low) == low
    assert gaussian_process._round_value(distribution, smooth.high) == pytest.approx(high)


@pytest.mark.parametrize(
    "distribution", [IntDistribution(1, 3), FloatDistribution(0, 1), CategoricalDistribution("ab")]
)
def test_a_narrow_or_continuous_range_is_unchanged(distribution):
    assert gaussian_process._smooth_distribution(distribution) is distribution


def test_the_process_proposes_only_branches_that_trials_have_had(proposals):
    study = search(TREE, lambda seed: GaussianProcessSampler(SamplerContext(TREE), seed), 24)
    names = {"model", "lr", "model.cnn.channels", "model.mlp.hidden.length"}
    names |= {"model.mlp.hidden.0", "model.mlp.hidden.1"}
    for made, space, results in proposals[5:]:
        assert made.keys() == space.keys() == names
        assert {trial.params["model"] for trial in results} == {"mlp", "cnn"}
    for made, _, _ in proposals:
        lacking = space.keys() - TREE.make_configuration(made).params.keys()
        assert all(made[name] == find_middle(space[name]) for name in lacking)
    later = [each["model"] for each in params(study)[12:]]
    assert later.count("cnn") > 8, "it is better by .5"
    assert {frozenset(TREE.make_configuration(each).params) for each in params(study)} == {
        *map(frozenset, params(study))
    }


def test_a_branch_that_only_a_running_trial_has_is_left_to_tpe(proposals):
    study = optuna.create_study(direction="maximize")

    def add(state, reports, **given):
        configuration = TREE.make_configuration(given)
        trial = create_trial(
            state=state,
            params=configuration.params,
            distributions=configuration.distributions,
            intermediate_values=reports,
        )
        study.add_trial(trial)

    add(TrialState.RUNNING, {1: 0.9, 2: 0.92}, lr=0.3, model="cnn", **{"model.cnn.channels": 0.5})
    for n in range(12):
        hidden = {"model.mlp.hidden.length": 1, "model.mlp.hidden.0": 4 + n}
        add(TrialState.PRUNED, {1: 0.5 + 0.01 * n}, lr=n / 12, model="mlp", **hidden)
    for seed in range(4):
        study.sampler = GaussianProcessSampler(SamplerContext(TREE), seed)
        TREE.suggest(study.ask())
    assert {made["model"] for made, _, _ in proposals} == {"mlp"}


def test_a_trial_without_a_value_or_with_another_range_is_left_out(proposals):
    study = search(TREE, lambda seed: GaussianProcessSampler(SamplerContext(TREE), seed), 10)
    other, ranges = {"model": "cnn", "lr": 0.5}, {**TREE.make_placeholder({}).distributions}
    lacking = {name: ranges[name] for name in other}
    wider = lacking | {"lr": FloatDistribution(0.0, 9.0)}
    for distributions in (lacking, wider):
        study.add_trial(create_trial(value=9.0, params=other, distributions=distributions))
    search(TREE, lambda seed: GaussianProcessSampler(SamplerContext(TREE), seed), 1, study)
    ((_, _, results),) = proposals
    assert {trial.number for trial in results} == {*range(10)}


def test_an_objective_that_suggests_is_modeled_by_what_all_trials_have(proposals):
    study = optuna.create_study(direction="maximize")
    for number in range(13):
        study.sampler = GaussianProcessSampler(SamplerContext(SuggestedSpace()), number)
        trial = study.ask()
        x = trial.suggest_float("x", 0, 1)
        y = trial.suggest_float("y", 0, 1) if number % 2 else 0.0
        study.tell(trial, y - x)
    assert [{*space} for _, space, _ in proposals] == 3 * [{"x"}]


def test_a_seed_proposes_the_same_for_any_number_of_threads(proposals):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        first = params(
            search(FLAT, lambda seed: GaussianProcessSampler(SamplerContext(FLAT), seed), 13)
        )
        torch.set_num_threads(2)
        assert (
            params(
                search(FLAT, lambda seed: GaussianProcessSampler(SamplerContext(FLAT), seed), 13)
            )
            == first
        )
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_the_process_takes_running_trials_into_account(proposals):
    study = search(FLAT, lambda seed: GaussianProcessSampler(SamplerContext(FLAT), seed), 10)
    study.sampler = GaussianProcessSampler(SamplerContext(FLAT), 10)
    first_params = FLAT.suggest(study.ask()).params  # and stays running
    study.sampler = GaussianProcessSampler(SamplerContext(FLAT), 10)
    assert FLAT.suggest(study.ask()).params != first_params


def test_the_process_accepts_constants_and_repeated_configurations():
    study = optuna.create_study()
    distributions = FLAT.make_placeholder({}).distributions
    for number in range(12):
        configuration = FLAT.make_placeholder({}, ("low", "high")[number % 2]).params
        study.add_trial(create_trial(value=1.0, params=configuration, distributions=distributions))
    study.sampler = GaussianProcessSampler(SamplerContext(FLAT), 1)
    FLAT.suggest(study.ask())


# Values that are far worse, or noisy


def explode(params, luck, highest_b=1.0):
    """Returns the loss of a configuration; `a` in the highest fifth, and high `b`, explode.

    Args:
        luck: a generator, for noise and the size of an explosion.
        highest_b: the highest `b` that does not explode; with 0.75, 40% of the space explodes.
    """
    a, b, c, d = (params[name] for name in "abcd")
    if a > 0.8 or b > highest_b:
        return 10 ** luck.uniform(2, 5)
    smooth = 6 * (a - 0.62) ** 2 + 0.8 * (b - 0.3) ** 2 + 0.5 * (c - 0.8) ** 2
    return 0.3 + smooth + 0.3 * math.sin(4 * d) * a + 0.02 * luck.normal()


SMOOTH = parse_space({name: {"float": [0.0, 1.0]} for name in "abcd"}, lambda group: ())
LEAST_LOSS = 0.157087  # on a fine grid


def find_regret(make, seed, highest_b, trials=30):
    """Returns how far the best of some trials, without its noise, is from the best there is."""
    luck = np.random.default_rng(seed)
    study = optuna.create_study()
    losses = []
    for number in range(trials):
        study.sampler = make(1000 * seed + number)
        trial = study.ask()
        params = SMOOTH.suggest(trial).params
        loss = explode(params, luck, highest_b)
        study.tell(trial, loss)
        if loss < 100:
            losses.append(explode(params, NoLuck()))
    return min(losses) - LEAST_LOSS


class NoLuck:
    """Draws no noise."""

    def normal(self):
        return 0.0


@pytest.mark.chaos
@pytest.mark.parametrize("highest_b", [1.0, 0.75])
def test_losses_that_explode_do_not_hide_the_best(highest_b):
    def make(number):
        return GaussianProcessSampler(SamplerContext(SMOOTH), number)

    regrets = [find_regret(make, seed, highest_b) for seed in range(4)]
    assert np.mean(regrets) < 0.05, "it was about 0.02 with clipping, and 0.166 without"


@pytest.mark.parametrize("largest", [1e2, 1e5])
def test_one_enormous_loss_leaves_the_others_in_order(largest):
    losses = np.append(np.linspace(0.3, 4.0, 40), largest)
    clipped = clip_bad_values(-losses)
    assert clipped[:40].tolist() == (-losses[:40]).tolist()
    assert -10 < clipped[40] < -4, "worse than all others, in their order of magnitude"


@pytest.mark.parametrize("exploded", [1, 6, 9, 11])
def test_losses_are_clipped_though_more_than_a_quarter_of_twenty_explode(exploded):
    losses = np.append(np.linspace(0.3, 4.0, 20 - exploded), np.geomspace(1e2, 1e5, exploded))
    clipped = clip_bad_values(-losses)
    assert clipped[:-exploded].tolist() == (-losses[:-exploded]).tolist()
    assert len(set(clipped[-exploded:])) == 1, "all explosions count the same"
    assert -10 < clipped[-1] < -4


def test_values_that_lie_together_and_infinite_ones_are_clipped():
    assert clip_bad_values(np.array([1.0, 2.0, 3.0])).tolist() == [1.0, 2.0, 3.0]
    assert clip_bad_values(np.array([5.0, 5.0, 5.1, 5.1, -9.0])).min() > 4.6
    assert np.isfinite(clip_bad_values(np.array([-np.inf, 1.0, 2.0]))).all()


def test_nothing_is_clipped_if_the_quartiles_are_equal():
    accuracies = 16 * [1.0] + [0.9, 0.8, 0.5, 0.1]
    assert clip_bad_values(np.array(accuracies)).tolist() == accuracies


@pytest.mark.parametrize("objectives", [1, 2])
def test_only_a_single_objective_is_clipped(objectives, monkeypatch):
    given = []

    def note(self, study, results, running, space):
        given.extend(trial.values for trial in results)
        return {}

    monkeypatch.setattr(GaussianProcess, "_sample_relative_impl", note)
    space = {"x": FloatDistribution(0.0, 1.0)}
    values = [[*map(float, range(8)), 1e5][n : n + 1] * objectives for n in range(9)]
    results = [create_trial(values=each, params={"x": 0.5}, distributions=space) for each in values]
    study = optuna.create_study(directions=objectives * ["minimize"])
    GaussianProcess(0).propose(study, results, [], space, [{}])
    assert (given == values) == (objectives == 2)
    assert [trial.values for trial in results] == values


# Many results, and many branches


def add_results(study, space, params, values):
    for each, value in zip(params, values, strict=True):
        configuration = space.make_configuration(each)
        study.add_trial(
            create_trial(
                value=value,
                params=configuration.params,
                distributions=configuration.distributions,
            )
        )


def test_the_process_learns_from_the_most_useful_of_many_results(proposals):
    space = parse_space({"x": {"float": [0.0, 1.0]}}, lambda group: ())
    study = optuna.create_study(direction="maximize")
    values = np.random.default_rng(0).permutation(1000) / 1000.0
    add_results(study, space, [{"x": value} for value in values.tolist()], values.tolist())
    study.sampler = GaussianProcessSampler(SamplerContext(space), 1)
    space.suggest(study.ask())
    ((_, _, results),) = proposals
    numbers = {trial.number for trial in results}
    assert len(results) == len(numbers) == MOST_RESULTS
    best_first = np.argsort(-values).tolist()
    assert numbers >= {*best_first[:MOST_BEST], *range(1000 - MOST_LATEST, 1000)}
    bad_values = [trial.value for trial in results if trial.value < 0.8]
    assert len(bad_values) > MOST_RESULTS / 4
    assert min(bad_values) < 0.1


def test_the_process_searches_the_best_branches_and_one_rarely_tried(monkeypatch):
    options = "abcdefghijkl"
    space = parse_space(
        {"kind": {option: {"x": {"float": [0.0, 1.0]}} for option in options}},
        lambda group: tuple(options) if group == "kind" else (),
    )
    params, values = [], []
    for number, option in enumerate(options):
        # The earlier in the alphabet the better, and the fewer results; k has the fewest.
        for repetition in range(1 if option == "k" else 2 + number):
            params.append({"kind": option, f"kind.{option}.x": repetition / 20})
            values.append(-float(number))
    study = optuna.create_study(direction="maximize")
    add_results(study, space, params, values)
    branches = []
    before = GaussianProcess.propose

    def propose(self, study, results, running, space, tried):
        branches.extend(branch["kind"] for branch in tried)
        return before(self, study, results, running, space, tried)

    monkeypatch.setattr(GaussianProcess, "propose", propose)
    study.sampler = GaussianProcessSampler(SamplerContext(space), 1)
    space.suggest(study.ask())
    assert branches[1:] == [option for option in "abcdek" if option != branches[0]]


# What sampler=auto stands for


@pytest.fixture
def proposal_time(monkeypatch):
    """Lets the process take 0.04 s of processor time for a proposal."""
    clock = iter(range(10_000))
    monkeypatch.setattr(auto_sampler, "thread_time", lambda: 0.04 * next(clock))
    return 0.04


def auto(**context):
    return lambda seed: AutoSampler(SamplerContext(FLAT, **context), seed)


@pytest.mark.parametrize(
    ("seconds", "results", "chosen"), [(0.5, RESULTS_TO_CHOOSE_TPE, "tpe"), (3.0, 10, "gp")]
)
def test_auto_decides_by_the_first_results_and_keeps_its_decision(
    proposals, proposal_time, seconds, results, chosen
):
    times = {TIMES: {"training": seconds, "sampling": 99.0, "start-up": 99.0}}
    study = search(FLAT, auto(), results, **times)
    assert SAMPLER not in study.user_attrs
    measured = len(proposals)
    search(FLAT, auto(), 2, study, **times)
    assert study.user_attrs[SAMPLER] == chosen
    assert study.user_attrs[PROPOSAL_TIME] == pytest.approx(proposal_time)
    slow = {TIMES: {"training": 1000.0 - seconds}}
    search(FLAT, auto(), 2, study, **slow)
    assert study.user_attrs[SAMPLER] == chosen
    # A proposal is measured once, after another one.
    if chosen == "gp":
        assert (measured, len(proposals)) == (0, 2 + 4)
    else:
        assert (measured, len(proposals)) == (2, 2)


def test_auto_becomes_the_process_once_trials_train_longer(proposals, proposal_time):
    """As with many workers, whose first trials have all come to their first rung only."""
    study = search(FLAT, auto(), 12, **{TIMES: {"training": 1.0}})
    assert SAMPLER not in study.user_attrs
    search(FLAT, auto(), 6, study, **{TIMES: {"training": 9.0}})
    assert study.user_attrs[SAMPLER] == "gp"
    assert len(proposals) > 2


def test_auto_does_not_depend_on_the_load_of_the_machine(proposal_time):
    idle = {TIMES: {"training": 1.5, "storage": 0.1}, PROCESSOR_TIME: 1.6}
    busy = {TIMES: {"training": 4.5, "storage": 0.3, "start-up": 9.0}, PROCESSOR_TIME: 1.6}
    for times in (idle, busy):
        study = search(FLAT, auto(), 12, **times)
        assert read_training_times(study) == pytest.approx(12 * [1.5])
        assert SAMPLER not in study.user_attrs


def test_a_training_that_waits_counts_a_quarter_of_its_time():
    study = optuna.create_study()
    study.add_trial(
        create_trial(value=1.0, user_attrs={TIMES: {"other": 80.0}, PROCESSOR_TIME: 0.1})
    )
    assert read_training_times(study) == [20.0]


def test_auto_is_the_process_in_a_deterministic_search(proposals):
    times = {TIMES: {"training": 0.001}}
    study = search(FLAT, auto(deterministic=True), 12, **times)
    assert study.user_attrs[SAMPLER] == "gp"
    assert PROPOSAL_TIME not in study.user_attrs
    assert len(proposals) == 2
    deterministic = ask(*TINY, "sampler=auto", "pruner=none", "study.deterministic=true")
    (note,) = Strategy(deterministic).notes()
    assert note.endswith("then a Gaussian process, since study.deterministic=true ignores times")


def test_auto_is_the_process_after_any_number_of_results(proposals, proposal_time, monkeypatch):
    monkeypatch.setattr(gaussian_process_sampler, "MOST_RESULTS", 11)
    monkeypatch.setattr(gaussian_process_sampler, "MOST_BEST", 5)
    monkeypatch.setattr(gaussian_process_sampler, "MOST_LATEST", 3)
    search(FLAT, auto(), 16, **{TIMES: {"training": 9.0}})
    assert [len(results) for _, _, results in proposals] == [10, 10, 10, 11, 11, 11, 11, 11]


def test_auto_leaves_several_objectives_to_tpe(proposals):
    study = search(FLAT, auto(objectives=2), 11, **{TIMES: {"training": 9.0}})
    assert SAMPLER not in study.user_attrs
    assert not proposals


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        (None, "TPE, then a Gaussian process if a proposal takes at most 2% of a trial"),
        ("gp", "a Gaussian process, since a proposal takes at most 2% of a trial"),
        ("tpe", "TPE, since a proposal of the Gaussian process takes more than 2% of a trial"),
    ],
)
def test_the_note_says_what_auto_stands_for(chosen, words):
    (note,) = Strategy(ask(*TWO, "sampler=auto", "pruner=none"), auto_sampler=chosen).notes()
    assert note == "sampler=auto: TPE, since objective.metric names several"
    (note,) = Strategy(ask(*TINY, "sampler=auto", "pruner=none"), auto_sampler=chosen).notes()
    assert note == f"sampler=auto: {words}"
    assert Strategy(ask(*TINY, "sampler=tpe", "pruner=none")).notes() == []


# With workers

DECAY = "optimizer.weight_decay.choice=[0.01,0.1,0.5,1.0]"
SEARCHED = (*TINY[:-1], "space=lr", "train.epochs=5", "study.trials=14", "study.baseline=false")


@pytest.mark.chaos
@pytest.mark.parametrize("pruner", ["asha", "median"])
@pytest.mark.parametrize("sampler", ["gp", "cmaes", "nsga2"])
def test_the_process_learns_from_pruned_trials(url, checkpoints, sampler, pruner, proposals):
    if sampler == "cmaes":
        pytest.importorskip("cmaes", reason="the extra samplers is missing")
    second = "+space.optimizer.weight_decay.float=[0,1]"
    more = ["sampler.population_size=5"] if sampler == "nsga2" else []
    definition = ask(*SEARCHED, second, f"sampler={sampler}", f"pruner={pruner}", *more)
    stored = fresh(url, definition, 14)
    work(definition, stored, 14)
    trials = stored.trials()
    assert {t.state for t in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    complete = sum(t.state == TrialState.COMPLETE for t in trials)
    assert complete < 10 or pruner == "median"
    if sampler == "gp":
        assert len(proposals) == 4
    else:
        name = {"cmaes": "cma:generation", "nsga2": "NSGAIISampler:generation"}[sampler]
        assert max(t.system_attrs.get(name, 0) for t in trials) > 0


@pytest.mark.chaos
def test_an_interrupted_search_by_the_process_proposes_the_same(url, checkpoints, proposals):
    definition = ask(*SEARCHED, "sampler=gp", "pruner=asha")
    stored = fresh(url, definition, 14)
    work(definition, stored, 14)
    whole = [(t.params, t.intermediate_values) for t in stored.trials()]
    assert proposals
    again = fresh(url, definition, 14, "again")
    for interrupted in range(3, 60, 4):
        work(definition, again, 14, Signal(interrupted))
        again = open_study(url, "again")
    work(definition, again, 14)
    assert [(t.params, t.intermediate_values) for t in again.trials()] == whole


@pytest.mark.chaos
def test_tpe_replaces_a_configuration_that_the_process_repeats(url, checkpoints, proposals):
    choices = [f"+space.{name}" for name in ("train.batch_size.choice=[16,32,64]", DECAY)]
    definition = ask(
        *TINY[:-1], "space=none", *choices, "sampler=gp", "pruner=none", "study.trials=12"
    )
    stored = fresh(url, definition, 12)
    work(definition, stored, 12, allow_repeats=False)
    assert proposals
    assert len({tuple(trial.params.items()) for trial in stored.trials()}) == 12
