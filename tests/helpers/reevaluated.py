"""Stages of a result on toy data: a worker in this process trains them, and they are tested."""

from dataclasses import dataclass, replace

import torch
import toys
from toys import TINY, Never, toy_folds, toy_split

from studyloom.data import DataSource
from studyloom.data.training_data import TrainingData
from studyloom.decisions.strategy import Strategy
from studyloom.decisions.warm_start import WarmStarts
from studyloom.objectives.loop_run import LoopJob, Run, RunContext
from studyloom.objectives.objective import Attempt
from studyloom.storage.opening import create_study
from studyloom.training.randomness import seeded
from studyloom.training.trainer import Training
from studyloom.views.result_files import write_result_files
from studyloom.winner import assemble_result
from studyloom.winner.evaluation import next_stage, read_evaluation
from studyloom.winner.stages import StagePlanner
from studyloom.worker.open_study import OpenStudy, Prepared
from studyloom.worker.stage import Stage
from studyloom.worker.worker import Worker

SPLIT = toy_split()
SPACE = (
    *(*TINY[:-1], "space=lr", "+space.train.batch_size.choice=[16,32,64]"),
    *("sampler=random", "pruner=none"),
)
# Networks that differ in kind.
MIXED = (
    *(*TINY[:-1], "space=none", "sampler=random", "pruner=none", "study.seed=1"),
    "+space.model.activation.choice=[relu,tanh,sigmoid]",
    "+space.optimizer.lr.float=[0.003,0.1]",
)


class CountedTest:
    """Loads the test set, and counts how often."""

    def __init__(self):
        self.loaded = 0

    def __call__(self):
        self.loaded += 1
        return test_part()


def test_part():
    """Makes other images of the same classes."""
    generator = torch.Generator().manual_seed(1)
    noise = 0.5 * torch.randn(SPLIT.inputs.shape, generator=generator)
    return replace(SPLIT, inputs=SPLIT.inputs + noise, digest="test")


test_part.__test__ = False


class ToySource(DataSource):
    """A source whose test set a test replaces."""

    def __init__(self, validation):
        self.validation = validation

    def train(self):
        return SPLIT

    def test(self):
        raise AssertionError("the test set is not loaded")


def stages_of(definition, url, run_dir, trials, **settings):
    stored = create_study(
        url, "s", definition.identity("toy"), trials, objectives=definition.objectives
    )
    data = TrainingData(ToySource(40), SPLIT)
    return open_stages(stored, definition, data, url, run_dir, trials, **settings)


def open_stages(stored, definition, data, url, run_dir, trials, **settings):
    config = definition.config.with_values(
        {f"winner.{name}": value for name, value in settings.items()}
    )
    definition = replace(definition, config=config)
    strategy = Strategy(definition)
    prepared = Prepared(definition, strategy, None, data, url, run_dir, WarmStarts())
    return ToyStudy(OpenStudy(prepared, Stage("search", stored, definition, strategy, trials)))


@dataclass(frozen=True)
class ToyStudy:
    """An open study with its evaluation and its stages by name, which are read again each time."""

    study: OpenStudy

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        owner = self.study if hasattr(self.study, name) else self.evaluation
        return getattr(owner, name)

    @property
    def evaluation(self):
        return read_evaluation(self.study)

    def __iter__(self):
        """Yields the stages up to the first that has work."""
        count = 0
        while True:
            evaluation = self.evaluation
            stages = evaluation.stages
            following = next_stage(evaluation)
            if evaluation.planned is not None:
                stages.append(following)
            if count == len(stages):
                return
            yield stages[count]
            count += 1

    def stage(self, title):
        return next(stage for stage in self if stage.title == title)

    @property
    def reevaluation(self):
        """The re-evaluation, also where a single candidate needs none."""
        evaluation = self.evaluation
        plan = StagePlanner(self.study, evaluation.rule).plan_reevaluation(evaluation.candidates)
        return plan.find() or plan.begin()

    @property
    def final_training(self):
        return self.stage("final-training")

    def count_open_trials(self):
        stage = next_stage(self.evaluation)
        return 0 if stage is None else stage.count_open_trials() + stage.later_trials

    def is_done(self):
        return self.evaluation.trained_stage is not None


def train(stage, split, trials, folder=None):
    """Works on trials of a stage."""
    data = TrainingData(None, split, toy_folds(split))
    Worker(replace(stage, trials=trials), data, Never(), folder).run()


def work(stages):
    """Works through the stages."""
    for stage in stages:
        folder = stages.run_dir / "checkpoints" / stage.title
        folder.mkdir(parents=True, exist_ok=True)
        train(stage, stages.data.split, stage.trials, folder)


def evaluate_winner(stages, test, command, **more):
    """Tests the winner and writes the result as a command does: it holds the lease."""
    if isinstance(stages.data.source, ToySource):
        stages.data.source.test = test
    with stages.search.stored.ledger.testing() as store:
        evaluated = assemble_result.evaluate_winner(stages.evaluation, command, store, **more)
        return write_result_files(evaluated, stages.run_dir)


def train_plainly(stage, candidate, seed):
    """Trains a candidate without an objective; returns its value and the state that it keeps."""
    trainings = stage.source
    if trainings.definition.config.objective._target_ is None:
        training = Training([trainings.job(candidate, seed)], SPLIT)
        list(training)
        return training.history[-1][0].value, training.weights()[0]
    parts = map(SPLIT.as_dataset, trainings.fold(seed))
    new_seed = trainings.new_seed(seed)
    context = RunContext(0, Attempt(stage=stage.title), LoopJob(0, new_seed, lambda: parts))
    run = Run(context, "accuracy", lambda *_: None)
    with seeded(new_seed):
        value = toys.train(
            trainings.definition.compose_config(trainings.candidates[candidate]).for_user(), run
        )
    return value, run.copy_states()


def flat(weights):
    """Returns the tensors of a network, also those that a loop has kept under its name."""
    return weights.get("network", weights)
