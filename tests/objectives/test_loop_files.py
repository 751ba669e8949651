"""A trainer of another library within a loop, which keeps its state in its own files."""

import pytest
import torch
from toys import Never

from studyloom.config.study_config import StudyConfig
from studyloom.metrics import ObjectiveValue
from studyloom.objectives.loop import Loop, LoopObjective
from studyloom.objectives.loop_run import LoopJob
from studyloom.objectives.objective import Attempt

EPOCHS = 5


class Part:
    """What a trainer trains: a sum of random numbers."""

    def __init__(self):
        self.sum = torch.zeros(())

    def state_dict(self):
        return {"sum": self.sum}

    def load_state_dict(self, state):
        self.sum = state["sum"]


def train(config, run, every=1, count=EPOCHS):
    """A trainer that saves after every so many epochs."""
    part, last_epoch = Part(), 0
    run.keep_at_end(part=part)
    if run.checkpoint is not None:
        last_epoch, part.sum = torch.load(run.checkpoint / "state.pt", weights_only=True)
    epochs = run.epochs(count)
    next(epochs, None)
    for epoch in range(last_epoch + 1, EPOCHS + 1):
        part.sum = part.sum + torch.rand(())
        run.report(sum=part.sum)
        if epoch % every == 0:
            folder = run.dir / str(epoch % 2)
            folder.mkdir(exist_ok=True)
            torch.save((epoch, part.sum), folder / "state.pt")
            run.keep_files(folder)
        next(epochs, None)
    return run.value


def objective(folder, function=train):
    loop = Loop(function, StudyConfig({}, {}, ()), [ObjectiveValue("sum", "maximize")])
    attempt = Attempt(1, "search", folder)
    return LoopObjective(loop, [LoopJob(0, 7)], trial=3, attempt=attempt)


def run_to_end(trial_objective):
    """Runs an objective to its end, and returns its state after each epoch, and its value."""
    states = []
    value = trial_objective.run(lambda step: states.append(trial_objective.state()), Never())
    return states, value


def kill_after(folder, epoch, function=train):
    """Returns the last state that was saved when an objective ended after an epoch."""
    trial_objective, states = objective(folder, function), []

    def report(step):
        states.append(trial_objective.state())
        if step.number == epoch:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trial_objective.run(report, Never())
    return next((state for state in reversed(states) if state is not None), None)


@pytest.mark.parametrize(("epoch", "count"), [(1, None), (EPOCHS - 1, EPOCHS)])
def test_a_trainer_resumes_from_its_files_and_random_state(tmp_path, epoch, count):
    def function(config, run):
        return train(config, run, count=count)

    whole = objective(tmp_path / "whole", function)
    states, value = run_to_end(whole)
    assert all(state["now"]["kept"] == {} for state in states)
    assert whole.weights()["part"]["sum"] == value
    again = objective(tmp_path / "again", function)
    again.restore(kill_after(tmp_path / "again", epoch, function))
    assert len(again.steps()) == epoch
    assert run_to_end(again)[1] == value
    assert again.curves()["value"] == whole.curves()["value"]
    assert again.weights() == whole.weights()


def test_an_epoch_without_files_is_trained_again_and_reported_once(tmp_path):
    def function(config, run):
        return train(config, run, every=2)

    whole = objective(tmp_path / "whole", function)
    _, value = run_to_end(whole)
    assert kill_after(tmp_path / "first", 1, function) is None
    state = kill_after(tmp_path / "again", 3, function)
    assert state["now"]["epoch"] == 2
    again = objective(tmp_path / "again", function)
    again.restore(state)
    assert run_to_end(again)[1] == value
    assert again.curves()["number"] == [*range(1, EPOCHS + 1)]


@pytest.mark.parametrize("harm", ["changed", "gone"])
def test_files_that_differ_from_the_checkpoint_are_not_read(tmp_path, caplog, harm):
    state = kill_after(tmp_path, 3)
    file = tmp_path / "1" / "state.pt"
    if harm == "gone":
        file.unlink()
    else:
        torch.save((3, torch.tensor(99.0)), file)
    again = objective(tmp_path)
    again.restore(state)
    _, value = run_to_end(again)
    assert value == run_to_end(objective(tmp_path / "whole"))[1]
    assert f"trial 3: the files {tmp_path / '1'} are not those of the checkpoint" in caplog.text
