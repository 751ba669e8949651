"""The sampler `auto`: a Gaussian process where its time pays, and TPE elsewhere.

A proposal of the Gaussian process takes a part of a second. That pays if trials train for longer,
so both are measured, in processor time: on a busy machine both take longer, by different factors,
and the choice should not depend on what else a machine does.
"""

import logging
from time import thread_time

from optuna import Study

from studyloom.decisions.gaussian_process import Distributions, Params
from studyloom.decisions.gaussian_process_sampler import GaussianProcessSampler
from studyloom.decisions.samplers import SamplerContext
from studyloom.storage.attributes import PROPOSAL_TIME, SAMPLER, TIMES
from studyloom.storage.trial_record import TrialRecord

# The Gaussian process is chosen if a proposal takes at most this share of a mean trial. It is
# measured after ten results, and takes four to five times as long with 200.
LARGEST_SHARE = 0.02
# Results after which TPE is chosen if trials are short. With fewer they may be short only because,
# with many workers, all of them are at their first rungs.
RESULTS_TO_CHOOSE_TPE = 50
TRAINING = ("training", "evaluation", "other")  # kinds of a worker's time
NOT_WORKING = ("start-up", "idle")  # kinds in which a worker computes nothing for a trial
# The least share of a training that counts as processor time. A training that waits, as for another
# machine, uses hardly any, and takes long all the same.
LEAST_PROCESSOR_SHARE = 0.25
GP = "gp"
TPE = "tpe"
log = logging.getLogger(__name__)


class AutoSampler(GaussianProcessSampler):
    """Proposes by a Gaussian process if that takes a small share of a trial, and else by TPE.

    The choice is made between the tenth and the fiftieth result, and stored with the study. With
    several objectives it is TPE.

    Args:
        context: Describes the study; a deterministic one always gets a Gaussian process.
        seed: The seed of both.
    """

    def __init__(self, context: SamplerContext, seed: int | None = None) -> None:
        super().__init__(context, seed)
        self._has_several_objectives = context.objectives > 1
        self._deterministic = context.deterministic
        self._choice = context.auto_sampler  # GP, TPE, or None before the choice
        if self._has_several_objectives:
            self._choice = TPE

    @property
    def note(self) -> str:
        """The line that is printed before the first trial."""
        share = f"{LARGEST_SHARE:.0%} of a trial"
        if self._has_several_objectives:
            sampler = "TPE, since objective.metric names several"
        elif self._deterministic:
            sampler = "TPE, then a Gaussian process, since study.deterministic=true ignores times"
        elif self._choice == GP:
            sampler = f"a Gaussian process, since a proposal takes at most {share}"
        elif self._choice == TPE:
            sampler = f"TPE, since a proposal of the Gaussian process takes more than {share}"
        else:
            sampler = f"TPE, then a Gaussian process if a proposal takes at most {share}"
        return f"sampler=auto: {sampler}"

    def _propose(self, study: Study, search_space: Distributions, tpe_proposal: Params) -> Params:
        """Returns the proposal of the Gaussian process; an empty one if TPE proposes.

        The first worker that can choose between them stores the choice with the study, so that all
        others choose the same.
        """
        if self._choice is None:
            self._choice = study.user_attrs.get(SAMPLER)
        if self._choice is None:
            self._choice = self._choose(study, search_space, tpe_proposal)
            if self._choice is not None:
                _store(study, SAMPLER, self._choice)
                log.info(self.note)
        if self._choice != GP:
            return {}
        return super()._propose(study, search_space, tpe_proposal)

    def _choose(
        self, study: Study, search_space: Distributions, tpe_proposal: Params
    ) -> str | None:
        """Chooses GP or TPE; returns None while there are too few results.

        Long trainings choose the process early. Short ones choose TPE only after more trials, since
        the first ones to end or pause are the shortest.
        """
        if self._deterministic:  # times differ from run to run
            return GP
        times = read_training_times(study)
        if len(times) < self._least_results:
            return None
        proposal_time = self._measure_proposal(study, search_space, tpe_proposal)
        if proposal_time is None:
            return None
        mean_time = sum(times) / len(times)
        if proposal_time <= LARGEST_SHARE * mean_time:
            return GP
        if len(times) < RESULTS_TO_CHOOSE_TPE:
            return None
        return TPE

    def _measure_proposal(
        self, study: Study, search_space: Distributions, tpe_proposal: Params
    ) -> float | None:
        """Returns the processor seconds of a proposal, which are measured once for a study.

        None if the process cannot propose yet. The first proposal of a Python process imports
        libraries, so that a second one is measured.
        """
        stored_time = study.user_attrs.get(PROPOSAL_TIME)
        if isinstance(stored_time, int | float):
            return float(stored_time)
        first_proposal = super()._propose(study, search_space, tpe_proposal)
        if not first_proposal:
            return None
        start = thread_time()
        super()._propose(study, search_space, tpe_proposal)
        proposal_time = thread_time() - start
        _store(study, PROPOSAL_TIME, proposal_time)
        return proposal_time


def _store(study: Study, key: str, value: str | float) -> None:
    """Stores an attribute of a study directly in its storage.

    The Study object may be the wrapper that a user's objective gets, whose `set_user_attr` refuses
    studyloom's keys.
    """
    study._storage.set_study_user_attr(study._study_id, key, value)


def read_training_times(study: Study) -> list[float]:
    """Returns the training time of each trial that has ended or was paused, in processor seconds.

    A trial stores the seconds of its worker by kind, and how many seconds processors worked.
    """
    training_times = []
    for trial in study.get_trials(deepcopy=False):
        if TIMES in trial.user_attrs:
            training_times.append(_read_training_time(TrialRecord(trial)))
    return training_times


def _read_training_time(record: TrialRecord) -> float:
    """Returns the processor seconds of a trial's training.

    They are a share of the training's seconds: the share of all seconds of work in which a
    processor worked.
    """
    training_time = 0.0
    working_time = 0.0
    for kind, seconds in record.times.items():
        if kind in TRAINING:
            training_time += seconds
        if kind not in NOT_WORKING:
            working_time += seconds
    if record.processor_time is None or working_time == 0:
        return training_time
    processor_share = record.processor_time / working_time
    processor_share_in_bounds = min(1.0, max(LEAST_PROCESSOR_SHARE, processor_share))
    return training_time * processor_share_in_bounds
