"""Small studies whose truth is known: what a result says, and what many more seeds say.

* `synthetic`: networks on examples that a random teacher labels, of which any number can be drawn.
* `tables`: custom training loops that read a configuration's values from HPOBench
  (Eggensperger et al. 2021, arXiv:2109.06716): each seed draws from the normal distribution that
  the table's five seeds suggest.
* `loops`: custom training loops on a smooth function of two hyperparameters. The seed gives each
  network an accuracy of its own, which validation and test share, as for networks in practice.
* `real`: networks on breast cancer and handwritten digits of scikit-learn; a small part of the
  examples is the study's, and the rest gives the truth.
"""

import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from search.tables import SPACES, Task, load, names, size
from torch import nn

import studyloom
from studyloom import Float, Int
from studyloom.commands.run_call import CallReporting
from studyloom.objectives.objective import Attempt
from studyloom.winner.assemble_result import evaluate_winner
from studyloom.winner.candidates import CandidateId, CandidateTrainings, Training
from studyloom.winner.evaluation import Evaluation
from studyloom.winner.predictions import compute_outputs
from studyloom.winner.result import Candidate, Result
from studyloom.worker.stopping import Stop

KINDS = {"synthetic": 120, "tables": 140, "loops": 140, "real": 30}  # studies of each
TRIALS, EPOCHS, FRESH, SEEDS = 12, 8, 20_000, 10
DIGITS, TEACHERS, CLASSES = 20, 12, 4  # inputs, hidden units of the teacher, and classes
RATES = (0.001, 0.01, 0.005)  # default learning rates: poor, nearly best, and between the two
# Of loops: the standard deviation over seeds of a network's accuracy, and of its measured value on
# a validation or test set.
LUCK, MEASURING = 0.01, 0.005


class Net(nn.Sequential):
    """A network of one hidden layer."""

    def __init__(
        self, *, shape: Sequence[int], outputs: int, width: int = 32, dropout: float = 0.1
    ) -> None:
        super().__init__(
            nn.Linear(*shape, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, outputs)
        )


@dataclass(frozen=True)
class Truth:
    """The true value of a candidate, as far as many seeds and examples show it.

    Args:
        values: by seed.
        examples: the mean score of each example over the seeds; empty without examples.
    """

    values: NDArray[Any]
    examples: NDArray[Any]

    @property
    def value(self) -> float:
        return float(self.values.mean())

    def error(self, other: "Truth | None" = None) -> float:
        """Returns the standard error of the value, or of the difference to another one."""
        parts = [self] if other is None else [self, other]
        seeds = sum(each.values.var(ddof=1) / len(each.values) for each in parts)
        scores = self.examples - (0.0 if other is None else other.examples)
        return float(np.sqrt(seeds + (scores.var() / len(scores) if len(scores) else 0.0)))


@dataclass(frozen=True)
class Outcome:
    """What a study said, next to the truth; of all values more is better.

    Args:
        kind: of the study.
        test: the winner's mean on the test set, and its interval.
        difference: of winner and baseline on the test set, and its interval; None if it has won.
        truth: the winner's value in the mean of many seeds and examples.
        baseline: that of the baseline.
        errors: the standard errors of the winner's true value, and of the true difference.
        searched: the value of the best trial in the search.
        best: the true value of that trial.
        epochs: trained by the search, and by what came after it.
    """

    kind: str
    test: Any
    difference: Any
    truth: float
    baseline: float
    errors: tuple[float, float]
    searched: float
    best: float
    epochs: tuple[int, int]


def run_study(kind: str, seed: int, trials: int = TRIALS) -> Outcome:
    """Runs a study of a kind with a number of trials, and finds out the truth."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    return {"synthetic": synthetic, "real": real, "tables": table, "loops": loop}[kind](
        seed, trials
    )


def synthetic(seed: int, trials: int) -> Outcome:
    """Searches for a network where a teacher labels examples, from each of the default rates."""
    generator = np.random.default_rng(seed)
    first, second = (generator.normal(size=s) for s in ((DIGITS, TEACHERS), (TEACHERS, CLASSES)))

    def draw(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = generator.normal(size=(count, DIGITS)).astype("float32")
        chance = generator.gumbel(size=(count, CLASSES))
        answers = np.tanh(inputs @ first * 0.5) @ second * 1.2 + chance
        return torch.from_numpy(inputs), torch.from_numpy(answers.argmax(1))

    rate = RATES[seed % len(RATES)]
    return of_network("synthetic", seed, trials, (draw(600), draw(300)), draw(FRESH), rate)


def real(seed: int, trials: int) -> Outcome:
    """Searches for a network on a small part of a data set of scikit-learn."""
    from sklearn import datasets

    loader, train, test = (
        (datasets.load_breast_cancer, 150, 120) if seed % 2 else (datasets.load_digits, 400, 200)
    )
    inputs, targets = loader(return_X_y=True)
    inputs = ((inputs - inputs.mean(0)) / (inputs.std(0) + 1e-9)).astype("float32")
    order = np.random.default_rng(seed).permutation(len(inputs))
    parts = np.split(order, [train, train + test])
    sets = [(torch.from_numpy(inputs[p]), torch.from_numpy(targets[p])) for p in parts]
    return of_network("real", seed, trials, (sets[0], sets[1]), sets[2], 0.003)


def of_network(kind: str, seed: int, trials: int, data: Any, fresh: Any, rate: float) -> Outcome:
    """Runs a study of networks.

    Args:
        data: training and test set.
        fresh: the examples that give the truth.
        rate: the default learning rate.
    """
    space = {
        "model": {
            "width": Int(2, 128, log=True, default=32),
            "dropout": Float(0.0, 0.6, default=0.1),
        },
        "optimizer": {"lr": Float(1e-4, 1e-1, log=True, default=rate)},
    }

    def value(trainings: CandidateTrainings, candidate_id: CandidateId) -> Truth:
        test = trainings.data.test()
        part, right = replace(test, inputs=fresh[0], targets=fresh[1]), []
        for number in range(trainings.seeds, trainings.seeds + SEEDS):
            objective = trainings.make_new_objective(Training(candidate_id, number), 0, Attempt())
            objective.run(lambda step: None, Stop())
            job = trainings.job(candidate_id, number)
            found = compute_outputs(job, objective.weights(), part)
            right.append((found.outputs.argmax(1) == found.targets).numpy())
        return Truth(np.mean(right, axis=1), np.mean(right, axis=0))

    settings = {"space": space, "data": data, "train": {"epochs": EPOCHS}}
    return conduct(kind, seed, trials, Net, settings, value)


def table(seed: int, trials: int) -> Outcome:
    """Searches a table, whose middle configuration is the baseline."""
    number = seed % len(names("hpobench"))
    counts = {name: size(node) for name, node in SPACES["hpobench"].items()}
    middles = {name: (count - 1) // 2 for name, count in counts.items()}
    space = {name: Int(0, n - 1, default=middles[name]) for name, n in counts.items()}

    def value(trainings: CandidateTrainings, candidate_id: CandidateId) -> Truth:
        values = trainings.candidates[candidate_id].values
        _, known = row({name: values[f"params.{name}"] for name in space}, number)
        return Truth(np.full(2, known.mean()), np.array([]))

    settings = {
        "space": space,
        "maximize": "accuracy",
        "params": {"table": number},
        "objective": {"test": test_on_table},
    }
    return conduct("tables", seed, trials, train_on_table, settings, value)


def train_on_table(config: Any, run: Any) -> float:
    """Draws the value of a configuration."""
    run.keep(network=nn.Identity())  # a loop that is tested keeps something
    return draw(config.params, run.seed, 0)


def test_on_table(config: Any, run: Any, part: Any) -> dict[str, float]:
    """Draws another value of a configuration."""
    return {"accuracy": draw(config.params, run.seed, 1)}


def draw(params: Any, *seed: int) -> float:
    """Draws from the normal distribution of the values of a configuration."""
    place, values = row(params, params.table)
    return float(np.random.default_rng([*seed, place]).normal(values.mean(), values.std(ddof=1)))


def row(params: Any, number: int) -> tuple[int, NDArray[Any]]:
    """Returns the place of a configuration in a table, and its values by seed."""
    task = load("hpobench", names("hpobench")[number])
    assert isinstance(task, Task)
    sizes = [size(node) for node in SPACES["hpobench"].values()]
    place = int(np.ravel_multi_index([int(params[name]) for name in SPACES["hpobench"]], sizes))
    return place, np.asarray(task.values[place, :, -1])


def loop(seed: int, trials: int) -> Outcome:
    """Searches a smooth function, whose best configuration is near the default in some studies."""
    best = np.random.default_rng(seed).uniform(0.2, 0.8, 2).tolist()

    def value(trainings: CandidateTrainings, candidate_id: CandidateId) -> Truth:
        values = trainings.candidates[candidate_id].values
        accuracy = true_accuracy(values["params.width"], values["params.rate"], best)
        return Truth(np.full(2, accuracy), np.array([]))

    settings = {
        "space": {name: Float(0.0, 1.0, default=0.5) for name in ("width", "rate")},
        "maximize": "accuracy",
        "params": {"best": best},
        "objective": {"test": test_loop},
    }
    return conduct("loops", seed, trials, train_loop, settings, value)


def train_loop(config: Any, run: Any) -> float:
    """Measures the network of a seed on the validation set."""
    run.keep(network=nn.Identity())
    return measure_network(config.params, run.seed, part=0)


def test_loop(config: Any, run: Any, part: Any) -> dict[str, float]:
    """Measures the same network on the test set."""
    return {"accuracy": measure_network(config.params, run.seed, part=1)}


def measure_network(params: Any, seed: int, part: int) -> float:
    """Returns the accuracy of the network that a seed gives, as measured on a part of the data."""
    place = [int(1e6 * value) for value in (params.width, params.rate)]
    luck = np.random.default_rng([seed, *place]).normal(0, LUCK)
    error = np.random.default_rng([seed, *place, part]).normal(0, MEASURING)
    return true_accuracy(params.width, params.rate, params.best) + float(luck + error)


def true_accuracy(width: float, rate: float, best: Sequence[float]) -> float:
    """Returns the mean accuracy over all seeds: the higher, the nearer to the best values."""
    return 0.9 - 0.3 * ((width - best[0]) ** 2 + (rate - best[1]) ** 2)


def conduct(
    kind: str,
    seed: int,
    trials: int,
    subject: Any,
    settings: dict[str, Any],
    value: Callable[[CandidateTrainings, CandidateId], Truth],
) -> Outcome:
    """Runs a study to its tested winner in this process.

    Args:
        value: returns the true value of a candidate.
    """
    outcomes: list[Outcome] = []

    def measure(reporting: CallReporting, evaluation: Evaluation, stop: Stop) -> int:
        search = evaluation.study.stored
        assert evaluation.trained_stage is not None
        assert evaluation.candidates is not None
        with search.ledger.testing() as store:
            result = evaluate_winner(evaluation, (), store).result
        trainings_by_stage = [stage.stored.trials() for stage in evaluation.stages]
        lengths = []
        for trainings_of_stage in trainings_by_stage:
            lengths.append(sum(len(t.intermediate_values) or 1 for t in trainings_of_stage))
        last: CandidateTrainings = evaluation.trained_stage.source
        sources = {o: source.configuration for o, source in evaluation.candidates.items()}
        trainings = replace(last, candidates=sources, seeds=last.seeds)

        @cache
        def truth(number: int) -> Truth:
            return value(trainings, CandidateId(number))

        searched = search.ranked()[0]
        outcomes.append(
            describe(kind, result, truth, searched.number, (lengths[0], sum(lengths[1:])))
        )
        return 0

    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(CallReporting, "report", measure),
    ):
        studyloom.search(
            subject,
            name=f"{kind}{seed}",
            trials=trials,
            seed=seed,
            workers=1,
            quiet=True,
            run_dir=folder,
            **settings,
        ).close()
    return outcomes[0]


def describe(
    kind: str,
    result: Result,
    truth: Callable[[int], Truth],
    searched: int,
    epochs: tuple[int, int],
) -> Outcome:
    """Returns what a result says, next to the truth."""
    assert result.test is not None
    rows: dict[int, Candidate] = {row.trial: row for row in result.candidates}
    baseline = truth(next(number for number, row in rows.items() if row.baseline))
    winner = truth(result.winner.trial)
    return Outcome(
        kind,
        result.test.winner,
        result.test.difference,
        winner.value,
        baseline.value,
        (winner.error(), winner.error(baseline)),
        rows[searched].search_value,
        truth(searched).value,
        epochs,
    )
