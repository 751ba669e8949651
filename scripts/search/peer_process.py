"""Another optimizer, in a process of its environment, which needs nothing of this project.

    python -P peer_process.py NAME

Each line of its input is a call as a JSON list, each of its output the reply:

    ["begin", space, epochs, seed]    null; space lists [name, kind, range, log, option it needs]
    ["propose", worker]               [trial, hyperparameters, epoch to train to], or null to wait
    ["tell", worker, value]           null; the value at that epoch, of which more is better

Each optimizer is used as its authors recommend for several fidelities, with epochs from 1.
"""

import json
import os
import sys
import tempfile
import warnings
from typing import Any

Hyperparameter = tuple[str, str, list[Any], bool, str | None]
Space = list[Hyperparameter]


class Optimizer:
    """What all have in common.

    Args:
        space: in which an option comes before what it opens.
        epochs: of a whole training.
        seed: of the search.
    """

    def __init__(self, space: Space, epochs: int, seed: int) -> None:
        self.space, self.epochs, self.seed = space, epochs, seed
        self.prepare()

    def prepare(self) -> None:
        """Makes the optimizer."""

    def plain(self, values: Any) -> dict[str, Any]:
        """Returns hyperparameters as plain values within their ranges."""
        found: dict[str, Any] = {}
        for name, kind, ends, *_ in self.space:
            if (value := dict(values).get(name)) is None:
                continue
            if kind == "choice":
                found[name] = next(one for one in ends if str(one) == str(value))
            else:
                value = min(max(float(value), ends[0]), ends[1])
                found[name] = round(value) if kind == "int" else value
        return found


class EpochByEpoch(Optimizer):
    """An optimizer that decides after each epoch of a trial whether the trial continues.

    Its `start` returns the hyperparameters of a new trial; its `continues` gets trial, epoch and
    value.
    """

    start: Any
    continues: Any

    def __init__(self, *given: Any) -> None:
        self.running: dict[int, tuple[int, dict[str, Any], int]] = {}  # by worker
        self.trials: list[Any] = []
        super().__init__(*given)

    def propose(self, worker: int) -> tuple[int, dict[str, Any], int]:
        if worker not in self.running:
            values = self.plain(self.start())
            self.running[worker] = (len(self.trials) - 1, values, 0)
        trial, values, epoch = self.running[worker]
        self.running[worker] = (trial, values, epoch + 1)
        return self.running[worker]

    def tell(self, worker: int, value: float) -> None:
        trial, _, epoch = self.running[worker]
        if not self.continues(trial, epoch, value):
            del self.running[worker]


class Optuna(EpochByEpoch):
    """`optuna.create_study()`, used as in its tutorial: TPE, and the median pruner."""

    def prepare(self) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.study = optuna.create_study(
            direction="maximize", sampler=self.make_sampler(), pruner=self.make_pruner()
        )
        self.pruned = optuna.trial.TrialState.PRUNED

    def make_sampler(self) -> Any:
        """Returns the sampler that `create_study` takes without arguments, with a seed."""
        import optuna

        return optuna.samplers.TPESampler(seed=self.sampler_seed)

    def make_pruner(self) -> Any:
        """Returns the pruner that `create_study` takes without arguments."""
        import optuna

        return optuna.pruners.MedianPruner()

    @property
    def sampler_seed(self) -> int:
        return self.seed * 1009 + 17

    def start(self) -> dict[str, Any]:
        self.trials.append(drawn := self.study.ask())
        found: dict[str, Any] = {}
        for name, kind, ends, log, option in self.space:
            if option is None or option in found.values():
                if kind == "choice":
                    found[name] = drawn.suggest_categorical(name, ends)
                else:
                    found[name] = getattr(drawn, f"suggest_{kind}")(name, *ends, log=log)
        return found

    def continues(self, trial: int, epoch: int, value: float) -> bool:
        drawn = self.trials[trial]
        drawn.report(value, epoch)
        if epoch < self.epochs and not drawn.should_prune():
            return True
        ended = {"state": self.pruned} if epoch < self.epochs else {"values": value}
        self.study.tell(drawn, **ended)
        return False


class OptunaWithHyperband(Optuna):
    """Optuna as its documentation advises for many epochs: Hyperband with multivariate TPE."""

    def make_sampler(self) -> Any:
        import optuna

        return optuna.samplers.TPESampler(seed=self.sampler_seed, multivariate=True, group=True)

    def make_pruner(self) -> Any:
        import optuna

        return optuna.pruners.HyperbandPruner(
            min_resource=1, max_resource=self.epochs, reduction_factor=3
        )


class OptunaGaussianProcess(OptunaWithHyperband):
    """Optuna's Gaussian process, with Hyperband."""

    def make_sampler(self) -> Any:
        import optuna

        return optuna.samplers.GPSampler(seed=self.sampler_seed)


class OptunaGaussianProcessHalving(OptunaGaussianProcess):
    """Optuna's Gaussian process, with successive halving from the first epoch."""

    def make_pruner(self) -> Any:
        import optuna

        return optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)


class ByFidelity(Optimizer):
    """An optimizer that requests a configuration at a fidelity.

    A configuration that it has had at a lower one is the same trial, which continues from there.
    Its `request` returns a request, hyperparameters and fidelity; its `complete` gets the request
    and the value.
    """

    request: Any
    complete: Any

    def __init__(self, *given: Any) -> None:
        self.known: dict[tuple[Any, ...], int] = {}  # trials by configuration
        self.requests: dict[int, Any] = {}  # by worker
        super().__init__(*given)

    def propose(self, worker: int) -> tuple[int, dict[str, Any], int]:
        self.requests[worker], values, fidelity = self.request()
        values = self.plain(values)
        trial = self.known.setdefault(tuple(values.items()), len(self.known))
        return trial, values, max(1, min(self.epochs, round(fidelity)))

    def tell(self, worker: int, value: float) -> None:
        self.complete(self.requests.pop(worker), value)


# The evaluations that Hyperband makes in 432 epochs, when a configuration continues where it was:
# 27, 12, 6 and 4 configurations begin at 1, 3, 9 and 27 epochs, and 27 more in its second round.
# A quarter of them, at most, are SMAC's random configurations at the start.
SMAC_EVALUATIONS = 76


class Smac(ByFidelity):
    """SMAC3's multi-fidelity facade: Hyperband with a random forest."""

    def prepare(self) -> None:
        import ConfigSpace as cs
        from smac import MultiFidelityFacade, Scenario
        from smac.runhistory.dataclasses import TrialValue

        space = cs.ConfigurationSpace(seed=self.seed)
        makers = {"int": cs.Integer, "float": cs.Float}
        for name, kind, ends, log, option in self.space:
            choice = kind == "choice"
            made = cs.Categorical(name, ends) if choice else makers[kind](name, ends, log=log)
            space.add(made)
            if option is not None:
                space.add(cs.EqualsCondition(made, space[name.split(".")[0]], option))
        fidelities = {
            "min_budget": 1,
            "max_budget": self.epochs,
            "n_trials": SMAC_EVALUATIONS,
        }
        place = tempfile.mkdtemp()
        scenario = Scenario(
            space, seed=self.seed, deterministic=True, output_directory=place, **fidelities
        )
        self.facade = MultiFidelityFacade(
            scenario, lambda config, seed=0, budget=0: 0.0, logging_level=50, overwrite=True
        )
        self.value_of = TrialValue

    def request(self) -> tuple[Any, Any, float]:
        info = self.facade.ask()
        return info, info.config, info.budget or self.epochs

    def complete(self, request: Any, value: float) -> None:
        self.facade.tell(request, self.value_of(cost=-value, time=1.0), save=False)


PEERS: dict[str, Any] = {
    "optuna": Optuna,
    "optuna-hyperband": OptunaWithHyperband,
    "optuna-gp": OptunaGaussianProcess,
    "optuna-gp-halving": OptunaGaussianProcessHalving,
    "smac": Smac,
}


def main() -> None:
    warnings.simplefilter("ignore")
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # an optimizer may print
    peer: Any = None
    for line in sys.stdin:
        call, *given = json.loads(line)
        reply: Any = None
        try:
            if call == "begin":
                peer = PEERS[sys.argv[1]](*given)
            else:
                reply = getattr(peer, call)(*given)
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
