"""The methods that are compared, and what they return as the best trial."""

from dataclasses import dataclass

from .simulator import Tape
from .tables import Results


@dataclass(frozen=True)
class Run:
    """A search.

    Args:
        results: of the task that was searched.
        tape: of the search.
    """

    results: Results
    tape: Tape

    def best(self) -> list[int]:
        """Returns after each epoch the configuration whose last value is the best."""
        last: dict[int, tuple[float, int, int]] = {}  # by trial: value, epoch, configuration
        best: list[int] = []
        tape = self.tape
        for trial, configuration, epoch, value in zip(
            tape.trials, tape.configurations, tape.epochs, tape.values, strict=True
        ):
            last[trial] = (value, epoch, configuration)
            best.append(max(last.values())[2])
        return best


@dataclass(frozen=True)
class Method:
    """A way to search with the product.

    Args:
        overrides: of the command line; without any it is the default of this checkout.
    """

    overrides: tuple[str, ...] = ()


METHODS = {
    "default": Method(),
    **{
        name: Method((f"sampler={name}", "pruner=asha"))
        for name in ("tpe", "random", "gp", "cmaes")
    },
}
USUAL = ("default", "tpe", "random")
FORMER = "tpe"  # the default before samplers of other kinds learned from paused trials
