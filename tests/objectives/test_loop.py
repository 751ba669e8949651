"""The objective that calls a loop for each fold and seed, on loops of some lines."""

import copy
from contextlib import suppress
from statistics import fmean, stdev

import optuna
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from toys import Never

from studyloom.config.study_config import StudyConfig
from studyloom.errors import Stopped, UndefinedMetric
from studyloom.metrics import ObjectiveValue
from studyloom.objectives.loop import Loop, LoopObjective
from studyloom.objectives.loop_run import LoopJob
from studyloom.objectives.stream import Stream
from studyloom.space.rule import parse_limits
from studyloom.training.checkpoint import Checkpoint

OBJECTIVES = (ObjectiveValue("accuracy", "maximize"),)
TWO = (*OBJECTIVES, ObjectiveValue("parameters", "minimize"))
EPOCHS = 3


class Walk:
    """A state that each epoch draws on, instead of a network."""

    def __init__(self):
        self.place = torch.zeros(2)

    def step(self):
        self.place += torch.randn(2)
        return float(self.place.sum())

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        if state["place"].shape != self.place.shape:
            raise RuntimeError("size mismatch")
        self.place.copy_(state["place"])


def walk(config, run):
    walk = Walk()
    run.keep(walk=walk)
    for _ in run.epochs(EPOCHS):
        run.report(loss=run.seed, accuracy=walk.step())
    return run.value + config.seed


def forgetful(config, run):
    """Keeps nothing."""
    walk = Walk()
    for _ in run.epochs(EPOCHS):
        run.report(accuracy=walk.step())
    return run.value


def make_objective(function, seeds=(5,), objectives=OBJECTIVES, limits=None, **loop):
    config = StudyConfig({"params": {}}, {"params": {}}, ())
    limits = parse_limits(limits, None)
    jobs = [LoopJob(fold, seed) for fold, seed in enumerate(seeds)]
    return LoopObjective(Loop(function, config, objectives, limits, **loop), jobs)


def run_objective(objective, report=lambda step: None):
    return objective.run(report, Never())


def curves_without_seconds(objective):
    columns = objective.curves()
    columns.pop("seconds")
    return columns


def read_outcome(objective, value):
    steps = [(step.number, step.value) for step in objective.steps()]
    weights = {}
    for name, state in (objective.weights() or {}).items():
        if "place" in state:  # the state of a `Walk`
            weights[name] = state["place"].tolist()
    return value, steps, curves_without_seconds(objective), objective.standard_error(), weights


# Resuming


@pytest.mark.parametrize("function", [walk, forgetful])
@pytest.mark.parametrize(("seeds", "after"), [((5,), 1), ((5,), 2), ((5, 6), 4), ((5, 6), 6)])
def test_a_loop_resumes_after_any_report_to_the_same_result(function, seeds, after, tmp_path):
    check_resumption(
        function, seeds, after, tmp_path, lost_epochs=0 if function is walk else EPOCHS
    )


def shuffled_by_seed(run):
    return DataLoader(TensorDataset(torch.arange(8.0)), shuffle=True)


def shuffled_by_the_run(run):
    return DataLoader(TensorDataset(torch.arange(8.0)), shuffle=True, generator=run.generator)


def shuffled_by_a_generator(run):
    generator = torch.Generator().manual_seed(3)
    return DataLoader(TensorDataset(torch.arange(8.0)), shuffle=True, generator=generator)


class Shuffled(IterableDataset):
    """Draws a seed at the start of each pass."""

    def __iter__(self):
        generator = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
        for number in range(8):
            yield number + torch.rand(1, generator=generator)


def shuffled_as_it_goes(run):
    return DataLoader(Shuffled(), batch_size=2)


@pytest.mark.parametrize(
    "make_loader",
    [shuffled_by_seed, shuffled_by_the_run, shuffled_by_a_generator, shuffled_as_it_goes],
)
@pytest.mark.parametrize("after", [1, 2])
def test_a_loop_that_keeps_a_stream_resumes_in_the_midst_of_a_pass(make_loader, after, tmp_path):
    """An epoch is 3 batches, and draws random numbers besides."""

    def streaming(config, run):
        walk = Walk()
        stream = Stream(make_loader(run))
        run.keep(walk=walk, stream=stream)
        for _ in run.epochs(EPOCHS):
            batches = endless(stream)
            for _ in range(3):
                walk.place += torch.stack([*next(batches)]).sum() * torch.rand(())
            run.report(accuracy=walk.step())
        return run.value

    check_resumption(streaming, (5,), after, tmp_path, lost_epochs=0)


def check_resumption(function, seeds, after, tmp_path, lost_epochs):
    """Stops a loop after a number of reports, and compares its continuation with a whole run.

    The state is saved after each report, as the worker does.
    """
    undisturbed = make_objective(function, seeds)
    expected = read_outcome(undisturbed, run_objective(undisturbed))
    file = Checkpoint(tmp_path / "c.pt", "it")
    objective, reports = make_objective(function, seeds), []

    def report(step):
        reports.append(step.number)
        if step.number != objective.epochs and (state := objective.state()) is not None:
            file.save(state)
        if len(reports) == after:
            raise Stopped

    with suppress(Stopped):
        run_objective(objective, report)
    again, rest = make_objective(function, seeds), []
    if state := file.load():
        again.restore(state)
        restored = [step.number for step in again.steps()]
        assert restored == reports[: len(restored)]
        assert len(restored) >= len(reports) - 1 - lost_epochs
    assert (
        read_outcome(again, run_objective(again, lambda step: rest.append(step.number))) == expected
    )


def test_with_several_jobs_final_values_count_and_curves_are_averaged():
    objective, steps = make_objective(walk, (5, 6)), []
    value = run_objective(objective, steps.append)
    compared = [objective.compared_number(step) for step in steps]
    assert compared == [None, None, None, 1, None, None, None, 2]
    assert [step.number for step in steps] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [objective.is_new(step, 1) for step in steps] == 4 * [False] + 4 * [True]
    ends = [step for step in steps if step.ends_job]
    assert value == fmean(step.value for step in ends)
    assert objective.standard_error() == stdev(step.value for step in ends) / 2**0.5
    assert curves_without_seconds(objective)["number"] == [1, 2, 3]
    assert curves_without_seconds(objective)["loss"] == [5.5, 5.5, 5.5]
    assert curves_without_seconds(objective)["jobs"] == [2, 2, 2]
    assert steps[-1].number == objective.epochs


def test_steps_after_a_late_decision_of_the_pruner_are_forgotten():
    objective = make_objective(walk, (5, 6, 7))
    run_objective(objective)
    first, second, _ = (step.number for step in objective.steps() if step.ends_job)
    objective.forget_steps_after(first)
    assert curves_without_seconds(objective)["number"] == [1, 2, 3]
    assert objective.steps()[-1].number == first
    assert objective.standard_error() is None
    objective.forget_steps_after(second)
    two = [step.value for step in objective.steps() if step.ends_job]
    assert objective.standard_error() == stdev(two) / 2**0.5


def test_a_job_starts_again_if_its_checkpoint_has_another_architecture(caplog):
    """Also where the loop catches what `run.keep` raises: half of it may be restored."""

    def careless(config, run):
        walk = Walk()
        with suppress(Exception):
            run.keep(walk=walk)
        for _ in run.epochs(EPOCHS):
            run.report(accuracy=walk.step())
        return run.value

    states, undisturbed = [], make_objective(careless)
    value = run_objective(
        undisturbed, lambda step: states.append(copy.deepcopy(undisturbed.state()))
    )
    expected = read_outcome(undisturbed, value)
    states[0]["now"]["kept"]["walk"]["place"] = torch.zeros(9)
    objective, numbers = make_objective(careless), []
    objective.restore(states[0])
    assert (
        read_outcome(objective, run_objective(objective, lambda s: numbers.append(s.number)))
        == expected
    )
    assert numbers == [1, 2, 3]
    assert "the checkpoint does not fit run.keep(walk=…): size mismatch; it starts" in caplog.text


def test_the_state_of_another_objective_is_refused_without_a_change():
    objective = make_objective(walk)
    for state in ({"seeds": [9]}, {"seeds": [5], "reports": 3}):
        with pytest.raises(ValueError, match="the state does not fit this objective"):
            objective.restore(state)
        assert objective.steps() == []


def test_objects_with_a_state_that_run_keep_lacks_are_named():
    def careless(config, run):
        net, frozen = (
            torch.nn.Linear(2, 1),
            torch.nn.Linear(1, 1).requires_grad_(requires_grad=False),
        )
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        wrapped, loss, empty = torch.nn.Sequential(net), torch.nn.MSELoss(), torch.nn.ReLU()
        run.keep(net=net, optimizer=optimizer)
        for epoch in run.epochs(2):
            run.report(accuracy=epoch)
        assert all((frozen, schedule, wrapped, loss, empty))
        return run.value

    objective = make_objective(careless)
    run_objective(objective)
    assert objective.not_kept() == ["schedule"]
    whole = make_objective(walk)
    run_objective(whole)
    assert whole.not_kept() == []


def test_a_compiled_network_is_saved_and_restored_under_plain_names():
    def compiled(config, run):
        network = torch.nn.Linear(1, 1)
        run.keep(network=torch.compile(network, backend="eager"))
        for epoch in run.epochs(2):
            torch.nn.init.constant_(network.weight, epoch)
            run.report(accuracy=network.weight.item())
        return run.value

    objective, states = make_objective(compiled), []
    run_objective(objective, lambda step: states.append(copy.deepcopy(objective.state())))
    assert [*states[0]["now"]["kept"]["network"]] == ["weight", "bias"]
    assert [*objective.weights()["network"]] == ["weight", "bias"]
    earlier = states[0]["now"]["kept"]
    earlier["network"] = {f"_orig_mod.{name}": t for name, t in earlier["network"].items()}
    resumed, steps = make_objective(compiled), []
    resumed.restore(states[0])
    run_objective(resumed, lambda step: steps.append(step.number))
    assert steps == [2], "it did not start again"


class Numbers(IterableDataset):
    def __iter__(self):
        return iter(torch.arange(8.0))


def endless(loader):
    while True:
        yield from loader


FIXED = DataLoader(TensorDataset(torch.arange(8.0)))


@pytest.mark.parametrize(
    ("make", "is_stream"),
    [
        (lambda walk: Numbers(), True),
        (lambda walk: DataLoader(Numbers()), True),
        (lambda walk: iter(DataLoader(Numbers())), True),
        (lambda walk: iter(FIXED), True),
        (lambda walk: endless(FIXED), True),
        (lambda walk: Stream(FIXED), True),
        (lambda walk: FIXED, False),
        (lambda walk: (number for number in range(8)), False),
        (lambda walk: walk, False),
    ],
)
def test_a_stream_that_outlives_an_epoch_is_named_before_the_first(make, is_stream):
    def streaming(config, run):
        walk = Walk()
        run.keep(walk=walk)
        examples = make(walk)
        for _ in run.epochs(2):
            run.report(accuracy=walk.step())
        assert examples is not None
        return run.value

    objective, streams = make_objective(streaming), []
    run_objective(objective, lambda step: streams.append(objective.streams()))
    assert streams == [["examples"] if is_stream else []] * 2


def test_a_stream_that_is_kept_or_made_in_each_epoch_is_not_named():
    class Kept(Numbers, Walk):
        """A stream that knows its position."""

    def streaming(config, run):
        numbers = Kept()
        loader = DataLoader(numbers)
        iterator = iter(loader)
        more_numbers = Numbers()
        more_loader = DataLoader(more_numbers)
        stream = Stream(more_loader)
        run.keep(numbers=numbers, stream=stream)
        for epoch in run.epochs(2):
            in_epoch = iter(DataLoader(Numbers()))
            next(in_epoch)
            run.report(accuracy=epoch)
        assert iterator is not None
        return run.value

    objective, streams = make_objective(streaming), []
    run_objective(objective, lambda step: streams.append(objective.streams()))
    assert streams == [[], []]


# What ends a loop


def stubborn(config, run):
    """Catches all."""
    for epoch in range(1, 9):
        with suppress(BaseException):
            run(float(epoch), epoch)
    return 3.0


def obstinate(config, run):
    with suppress(BaseException):
        for epoch in run.epochs(9):
            run.report(accuracy=epoch)
    return 3.0


@pytest.mark.parametrize(
    ("function", "error"), [(stubborn, optuna.TrialPruned), (obstinate, Stopped)]
)
def test_no_loop_can_swallow_the_exception_of_a_report(function, error):
    steps = []

    def report(step):
        steps.append(step.number)
        if step.number == 2:
            raise error

    with pytest.raises(error):
        run_objective(make_objective(function), report)
    assert steps == [1, 2]


def test_a_tested_loop_must_keep_an_object_before_its_first_report():
    steps = []
    with pytest.raises(ValueError, match=r"objective\.test .* call run\.keep\(net=…\)"):
        run_objective(make_objective(forgetful, must_keep=True), steps.append)
    assert steps == []
    with pytest.raises(ValueError, match=r"objective\.test"):
        run_objective(make_objective(lambda config, run: 1.0, must_keep=True))


# What it returns


def test_several_objectives_are_returned_in_order_or_by_name():
    for returned in ((0.5, 10), {"accuracy": 0.5, "parameters": 10}):
        objective = make_objective(lambda config, run, it=returned: it, (5, 6), objectives=TWO)
        assert run_objective(objective) == 0.5
        assert [(cost.quantity, cost.value) for cost in objective.costs()] == [("parameters", 10.0)]


def test_a_missing_or_undefined_value_is_named():
    for returned, objectives, words in (
        ((0.5, 1, 2), TWO, r"reported no parameters.*run\.cost\(parameters=…\)"),
        ({"loss": 1}, OBJECTIVES, "returned loss: expected objective.metric=accuracy"),
        ((0.5, float("nan")), TWO, "parameters=nan"),
        (None, OBJECTIVES, r"returned None, and not run\.value: expected a finite number"),
    ):
        with pytest.raises(UndefinedMetric, match=words):
            run_objective(
                make_objective(lambda config, run, it=returned: it, objectives=objectives)
            )


def test_reports_without_the_metric_are_refused_with_their_names():
    def inside(config, run):
        for _ in run.epochs(2):
            run.report(loss=1.0)
            run.report(accurate=0.5)

    def outside(config, run):
        run.report(loss=1.0, accurate=0.5)

    for function in (inside, outside):
        words = "reported loss, accurate, and not objective.metric=accuracy; did you mean accurate"
        with pytest.raises(UndefinedMetric, match=words):
            run_objective(make_objective(function))
