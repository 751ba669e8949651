"""What `pruner=auto` stands for: ASHA where trials can pause, the median or nothing elsewhere.

Whether a custom training loop can pause is known only when it runs: it must call `run.keep`, so
that a trial resumes from a checkpoint, and `run.epochs`, so that its epochs are known. So the
pruner of a loop is undecided until a first trial has ended well, which is without a failure.
Then the worker of that trial stores the lowest rung, the epoch at which ASHA first compares trials.
"""

from typing import TYPE_CHECKING, ClassVar

from optuna.pruners import BasePruner, MedianPruner, NopPruner

from studyloom.decisions.asha import AshaPruner

if TYPE_CHECKING:  # torch takes two seconds, which a proposer need not wait for
    from studyloom.definition.definition import Definition

MEDIAN = {"n_startup_trials": 5, "n_warmup_steps": 1}  # settings of the median pruner


def default_pruner(
    definition: "Definition", epochs: int | None, stored_rung: int | None
) -> BasePruner:
    """Makes the pruner that `pruner=auto` stands for.

    It is ASHA for networks, and for a custom training loop that has called `run.keep` and
    `run.epochs` in the first trial that ended well. Otherwise, and in a loop until then, it is
    Optuna's median pruner: a study that began without rungs goes on without them. The median pruner
    compares by one value, so that with several objectives no trial is pruned.

    Args:
        definition: The study definition.
        epochs: The number of epochs of a whole training; None if it is not known.
        stored_rung: The epoch of the lowest rung that the study has stored, 0 if it has no rungs;
            None for a new study, and for a loop until a first trial has ended well.
    """
    asha = AshaPruner(epochs=epochs, stored_rung=stored_rung)
    trials_can_pause = not asha.check(definition)
    has_rungs = stored_rung != 0  # a new study gets rungs
    if definition.trains_networks and trials_can_pause and has_rungs:
        return asha
    if len(definition.objectives) > 1:
        return Unpruned()
    if definition.trains_networks or not trials_can_pause:
        return MedianPruner(**MEDIAN)
    undecided = UndecidedPruner(**MEDIAN)
    if stored_rung is None:
        return undecided
    return undecided.decide(stored_rung)


def choose_lowest_rung(epochs: int | None) -> int:
    """Returns the epoch of the lowest rung of a loop, after a first trial; 0 for no rungs.

    It has rungs if that trial has shown that trials can resume, and if they have enough epochs to
    be promoted from one rung to the next.

    Args:
        epochs: The number of epochs of that trial; None if it cannot resume.
    """
    asha = AshaPruner(epochs=epochs)
    if epochs is None or epochs < asha.min_resource * asha.reduction_factor:
        return 0
    return asha.min_resource


class ExplainedPruner(BasePruner):
    """A pruner that says before the first trial why `pruner=auto` stands for it."""

    note: ClassVar[str]


class UndecidedPruner(ExplainedPruner, MedianPruner):
    """The pruner `auto` of a custom training loop until a first trial has ended well."""

    note = (
        "pruner=auto: median, and asha if the loop calls run.keep and run.epochs in the first "
        "trial that ends well"
    )

    def decide(self, lowest_rung: int) -> "LoopAshaPruner | LoopMedianPruner":
        """Returns the pruner of the other trials.

        Args:
            lowest_rung: The epoch of the lowest rung; 0 if trials cannot be paused.
        """
        if lowest_rung == 0:
            return LoopMedianPruner(**MEDIAN)
        return LoopAshaPruner(lowest_rung)


class LoopAshaPruner(ExplainedPruner, AshaPruner):
    """The pruner `auto` of a custom training loop whose first trial has shown that it can resume.

    A trial that cannot, as in another branch of the loop, starts again where it is promoted.
    """

    note = (
        "pruner=auto: asha, since the loop called run.keep and run.epochs in the first trial that "
        "ended well"
    )
    demands_checkpoints = False


class LoopMedianPruner(ExplainedPruner, MedianPruner):
    """The pruner `auto` of a custom training loop whose trials are never paused."""

    note = (
        "pruner=auto: median, since the loop did not call run.keep and run.epochs in the first "
        "trial that ended well, or has too few epochs for asha"
    )


class Unpruned(ExplainedPruner, NopPruner):
    """Prunes no trial, and says why."""

    note = (
        "no trial is pruned: pruner=auto is the median here, which compares by one value, and "
        "objective.metric names several"
    )
