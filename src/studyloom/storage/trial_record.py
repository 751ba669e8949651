"""Reads what is stored with a trial by name: how it ended, what it cost, and who made it.

Importing this module imports no torch: `studyloom status` uses it.
"""

from collections.abc import Collection, Iterator, Mapping
from itertools import zip_longest
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from studyloom.storage.attributes import JOBS, TrialAttributes
from studyloom.text import mask_passwords


class TrialRecord(TrialAttributes):
    """Reads the attributes of a trial, and what follows from them."""

    @property
    def outcome(self) -> str:
        """The state of the trial: complete, pruned, failed, paused, running or waiting.

        A trial that diverged has failed, although it is stored as pruned, for the sampler.
        """
        trial = self.trial
        if self.failure is not None or trial.state == TrialState.FAIL:
            return "failed"
        if trial.state == TrialState.RUNNING and self.paused is not None:
            return "paused"
        return trial.state.name.lower()

    @property
    def reason(self) -> str | None:
        """Why it failed; None if nothing is stored."""
        if self.error is None:
            return None
        return mask_passwords(str(self.error))

    @property
    def proposer(self) -> str | None:
        """Who proposed its configuration; None if sampler or command chose it."""
        if not isinstance(self.proposed, Mapping):
            return None
        return str(self.proposed.get("by", ""))

    @property
    def proposal_reason(self) -> str | None:
        """Why its configuration was proposed; None if sampler or command chose it."""
        if not isinstance(self.proposed, Mapping):
            return None
        return str(self.proposed.get("why", ""))

    @property
    def config(self) -> dict[str, Any] | None:
        """The configuration that it was made of; None if it stored none."""
        config = self.provenance.get("config")
        if not isinstance(config, dict):
            return None
        return config

    @property
    def curve(self) -> dict[str, list[Any]]:
        """The learning curve by column, with the columns `number` and `value` among them.

        The columns of all epochs are stored when the trial has ended or reached a rung. Before, the
        curve has the steps that it reported, which Optuna's pruners and dashboard read. It is empty
        if the trial has reported nothing.
        """
        if self.columns:
            return self.columns
        reports = sorted(self.trial.intermediate_values.items())
        if not reports:
            return {}
        return {
            "number": [step for step, _ in reports],
            "value": [value for _, value in reports],
        }

    def epochs(self) -> Iterator[dict[str, Any]]:
        """Yields the quantities of each epoch of the learning curve, by name.

        A value is None where only other epochs have one.
        """
        columns = self.curve
        for epoch in zip_longest(*columns.values()):
            yield dict(zip(columns, epoch, strict=True))

    @property
    def epoch_count(self) -> int:
        """How many epochs it has trained.

        A custom training loop may be called several times for one trial, such as once for each
        fold. After the trial has ended, these are the epochs of all calls. While it runs, each of
        its reports counts as one epoch.
        """
        if self.planned_jobs is not None and JOBS in self.columns:
            # The column JOBS has the number of calls that have trained each epoch.
            trained_count = sum(jobs or 0 for jobs in self.columns[JOBS])
        else:
            trained_count = len(self.curve.get("value", ()))
        # The learning curve is stored at rungs and at the end. A trial that runs may have reported
        # more epochs than that.
        reported_count = len(self.trial.intermediate_values)
        return max(trained_count, reported_count)

    @property
    def steps_done(self) -> int:
        """How many of its `steps_planned` are done."""
        if self.planned_jobs is None:
            return self.epoch_count
        return len(self.trial.intermediate_values)  # each call of the loop reports one value

    @property
    def steps_planned(self) -> int | None:
        """How many epochs it is to train; None if unknown.

        If it calls a custom training loop several times, such as once for each fold, then how many
        calls are planned.
        """
        if self.planned_jobs is None:
            return self.planned_epochs
        return self.planned_jobs

    @property
    def seconds(self) -> float | None:
        """The seconds that workers spent on it, without their start-up; None until it has ended.

        A trial that did not store them counts from its start to its end, interruptions included.
        """
        if not self.trial.state.is_finished():
            return None
        if "training" in self.times:
            seconds_by_kind = [value for kind, value in self.times.items() if kind != "start-up"]
            return round(sum(seconds_by_kind), 4)
        if self.trial.duration is None:
            return None
        return self.trial.duration.total_seconds()


INTERRUPTED = "interrupted"  # the state, as shown, of a running trial that no living worker holds


def shown_state(trial: FrozenTrial, alive: Collection[int | None] | None) -> str:
    """Returns the state of a trial as people see it: its outcome, or that it is interrupted.

    It is interrupted if it runs and no living worker holds it.

    Args:
        alive: The numbers of the trials that living workers hold; None if there are no leases, as
            in a study of another program.
    """
    outcome = TrialRecord(trial).outcome
    if outcome == "running" and alive is not None and trial.number not in alive:
        return INTERRUPTED
    return outcome


def describe_state(trial: FrozenTrial, alive: Collection[int | None] | None) -> str:
    """Returns the state of a trial as people see it, and where it resumes if it is interrupted.

    Args:
        alive: The numbers of the trials that living workers hold; None if there are no leases.
    """
    state = shown_state(trial, alive)
    record = TrialRecord(trial)
    if state == INTERRUPTED and record.planned_jobs is None:
        return f"{state}, resumes at epoch {record.steps_done + 1}"
    return state
