"""Failures: their kinds, their effect on the study and the sampler, and their counts."""

import errno
import os
from dataclasses import replace

import pytest
import torch
from optuna import TrialPruned
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState, create_trial
from toy_worker import fresh, work
from toys import ask

from studyloom.definition.definition import Definition
from studyloom.definition.network import NetworkDefinition
from studyloom.errors import (
    BrokenProcess,
    ClaimLost,
    CommandFailed,
    Diverged,
    Halted,
    StorageLost,
)
from studyloom.objectives.objective import Objective
from studyloom.storage.attributes import FAILURE, PAUSED, REASON
from studyloom.storage.failures import count_failures
from studyloom.storage.trial_record import TrialRecord
from studyloom.worker.failure_causes import explain, find_gpu_error
from studyloom.worker.reporter import Reporter


class Broken(torch.nn.Module):
    """A network that fails in its first step, or not at all."""

    errors: tuple[BaseException | None, ...] | list = ()  # of the networks to come, in this order

    def __init__(self, shape, classes):
        super().__init__()
        self.error = self.errors.pop(0)
        self.layer = torch.nn.Linear(shape[0] * shape[1] * shape[2], classes)

    def forward(self, images):
        if self.error is not None:
            raise self.error
        return self.layer(images.flatten(1))


@pytest.fixture
def broken(monkeypatch):
    """A function that returns a question, whose networks fail with the given errors in turn."""
    asked = ask("space=lr", "sampler=random", "train.epochs=1", "train.batch_size=32")
    config = asked.config.with_values({"model": {"_target_": "test_failures.Broken"}})
    definition = replace(asked, config=config)
    monkeypatch.setattr(Definition, "compose_config", lambda self, configuration: self.config)

    def fails_with(*errors):
        monkeypatch.setattr(Broken, "errors", list(errors))
        return definition

    return fails_with


class Unreadable(Exception):
    """An exception of a user's code that cannot be printed."""

    def __str__(self):
        raise RuntimeError("it has no text")


OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory")
NO_MEMORY = RuntimeError("[enforce fail] can't allocate memory: 9")
# As PyTorch, JAX, TensorFlow and Linux word it.
NO_MEMORY_TEXTS = (
    "CUDA out of memory. Tried to allocate 20.00 MiB",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
    "HIP out of memory. Tried to allocate 2.00 MiB",
    "XPU out of memory. Tried to allocate 2.00 GiB",
    "MPS backend out of memory (MPS allocated: 9.00 GB, max allowed: 9.07 GB)",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "cuFFT error: CUFFT_ALLOC_FAILED",
    "level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)",
    "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes",
    "DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes",
    "unable to mmap 8 bytes from file </torch>: Cannot allocate memory (12)",
    "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 2147483648 bytes.",
    "OOM when allocating tensor with shape[8,8]",
    "std::bad_alloc",
)
FAILURES = (
    (OUT_OF_MEMORY, "out_of_memory", "OutOfMemoryError: CUDA out of memory"),
    (MemoryError(), "out_of_memory", "MemoryError"),
    (NO_MEMORY, "out_of_memory", "RuntimeError"),
    (RuntimeError("a bug"), "error", "RuntimeError: a bug"),
    (SystemExit(0), "error", "SystemExit: 0"),
    (KeyboardInterrupt(), "error", "KeyboardInterrupt"),
    (GeneratorExit(), "error", "GeneratorExit"),
    (UpdateFinishedTrialError("of its own"), "error", "UpdateFinished"),
    (StorageLost("of its own"), "error", "StorageLost: of its own"),
    (ClaimLost(), "error", "ClaimLost"),
    (Unreadable(), "error", "Unreadable"),
)


def test_a_failure_has_a_kind_and_a_reason_and_the_study_continues(sqlite_url, broken):
    """Also what looks like an error of ours: the user's code has raised it."""
    count = len(FAILURES) + 3
    definition = broken(None, *(error for error, *_ in FAILURES), TrialPruned(), None)
    stored = fresh(sqlite_url, definition, count)
    work(definition, stored, count)
    first, *failed, pruned, last = stored.trials()
    for trial, (_, kind, reason) in zip(failed, FAILURES, strict=True):
        teaches = kind == "out_of_memory"
        assert trial.state == (TrialState.PRUNED if teaches else TrialState.FAIL)
        assert trial.user_attrs[FAILURE] == kind
        assert trial.user_attrs[REASON].startswith(reason)
        assert trial.constraints == ({kind: 1.0} if teaches else {})
        assert ("in forward" in trial.user_attrs.get("traceback", "")) != teaches
    assert (pruned.state, FAILURE in pruned.user_attrs) == (TrialState.PRUNED, False)
    assert first.state == last.state == TrialState.COMPLETE
    assert stored.optuna.best_trial.number in (first.number, last.number)


def test_an_error_in_the_first_trial_halts_until_the_study_is_restarted(sqlite_url, broken):
    definition = broken(OSError("cannot reach postgresql://bob:hunter2@db/x"), None, None)
    stored = fresh(sqlite_url, definition, 3)
    with pytest.raises(
        Halted, match=r"OSError: cannot reach postgresql://bob:\*\*\*@db/x"
    ) as halted:
        work(definition, stored, 3)
    assert stored.ledger.counts() == {"free": 2, "held": 0, "done": 1}
    (failed,) = stored.trials()
    told = (failed.user_attrs, stored.optuna.user_attrs, halted.value)
    assert "hunter2" not in str(told), "the password is stored nowhere"
    with pytest.raises(Halted):  # a worker that comes later
        work(definition, stored, 3)
    work(definition, fresh(sqlite_url, definition, 3), 3)
    assert stored.ledger.counts()["done"] == 3


def test_the_same_error_in_a_row_stops_the_study_and_different_ones_do_not(sqlite_url, broken):
    different = [RuntimeError(str(number)) for number in range(3)]
    definition = broken(None, *different, None, *[RuntimeError("a bug")] * 5)
    stored = fresh(sqlite_url, definition, 10)
    with pytest.raises(Halted, match="RuntimeError: a bug"):
        work(definition, stored, 10, max_failures=3)
    assert len(stored.trials()) == 8


def test_a_sampler_stops_going_where_training_diverges(sqlite_url, broken, monkeypatch):
    """Half of the range diverges. TPE learns that, and goes there less often than chance would."""
    definition = broken()
    sampler = {"_target_": "optuna.samplers.TPESampler", "n_startup_trials": 8}
    config = definition.config.with_values({"sampler": sampler, "study.baseline": False})
    definition = replace(definition, config=config)
    tried = []

    def diverge_above(self, stopping):
        rate = self.held.trial.params["optimizer.lr"]
        tried.append(rate > 3e-3)
        if tried[-1]:
            raise Diverged(0, 1, 1, "train", float("nan"))
        return 0.5

    silent = Objective()
    monkeypatch.setattr(NetworkDefinition, "make_objective", lambda *_: silent)
    monkeypatch.setattr(Reporter, "run", diverge_above)
    stored = fresh(sqlite_url, definition, 28)
    work(definition, stored, 28)
    assert sum(tried[8:]) <= 6 < len(tried[8:]) / 2
    assert {trial.user_attrs.get(FAILURE) for trial in stored.trials()} == {None, "diverged"}


@pytest.mark.parametrize("text", NO_MEMORY_TEXTS)
def test_running_out_of_memory_is_recognized_by_each_librarys_message(text):
    for error in (RuntimeError(text), CommandFailed(f"it ended with 1; it printed: {text}")):
        assert explain(error).kind == "out_of_memory"
        assert find_gpu_error(error) is None, "the next trial may be smaller"


def test_running_out_of_memory_is_recognized_by_the_exceptions_class():
    refused = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
    for error in (MemoryError(), torch.OutOfMemoryError("full"), refused):
        assert explain(error).kind == "out_of_memory"


# A GPU that this process can no longer use

ASSERT = "CUDA error: device-side assert triggered"
# As PyTorch, NCCL, Triton, CuPy, JAX and Intel word it.
BROKEN_GPU_TEXTS = (
    f"{ASSERT}\nCUDA kernel errors might be asynchronously reported at some other API call",
    "CUDA error: an illegal memory access was encountered",
    "CUDA error: unspecified launch failure",
    "CUDA error: misaligned address",
    "CUDA error: an illegal instruction was encountered",
    "CUDA error: the launch timed out and was terminated",
    "CUDA error: uncorrectable ECC error encountered",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle, opa, opb)`",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR",
    "cuFFT error: CUFFT_EXEC_FAILED",
    "HIP error: an illegal memory access was encountered",
    "NCCL error: unhandled cuda error (run with NCCL_DEBUG=INFO for details)",
    "Triton Error [CUDA]: an illegal memory access was encountered",
    "cudaErrorAssert: device-side assert triggered",
    "INTERNAL: CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered",
    "level_zero backend failed with error: 20 (UR_RESULT_ERROR_DEVICE_LOST)",
)


@pytest.mark.parametrize("text", BROKEN_GPU_TEXTS)
def test_a_broken_gpu_is_recognized_by_each_librarys_message(text):
    error = RuntimeError(text)
    assert find_gpu_error(error) == f"RuntimeError: {text}".splitlines()[0]
    assert explain(error).kind == "error"


def test_a_broken_gpu_is_recognized_behind_another_exception():
    for other in (TrialPruned("it failed"), ValueError("it failed")):
        other.__context__ = RuntimeError(ASSERT)  # as of an exception that is raised in `except`
        assert find_gpu_error(other) == f"RuntimeError: {ASSERT}"
    assert find_gpu_error(CommandFailed(ASSERT)) is None, "it was in another process"
    assert find_gpu_error(RuntimeError("a bug")) is None


def test_a_trial_that_breaks_the_gpu_ends_only_its_process(sqlite_url, broken):
    """A worker that continued would fail all trials to come, and the study would halt."""
    count = 6
    definition = broken(None, RuntimeError(ASSERT), *[None] * (count - 2))
    stored = fresh(sqlite_url, definition, count)
    with pytest.raises(BrokenProcess, match=f"trial 1 has left .* its GPU: RuntimeError: {ASSERT}"):
        work(definition, stored, count)
    assert stored.ledger.counts() == {"free": count - 2, "held": 0, "done": 2}
    work(definition, stored, count)  # as the process that replaces it
    states = [trial.state for trial in stored.trials()]
    assert states.count(TrialState.FAIL) == 1
    assert states.count(TrialState.COMPLETE) == count - 1


def test_a_study_whose_trials_all_break_the_gpu_halts(sqlite_url, broken):
    count = 4
    definition = broken(None, *[RuntimeError(ASSERT)] * (count - 1))
    stored = fresh(sqlite_url, definition, count)
    for _ in range(count - 2):
        with pytest.raises(BrokenProcess):
            work(definition, stored, count, max_failures=count - 1)
    with pytest.raises(Halted, match=ASSERT):
        work(definition, stored, count, max_failures=count - 1)


# Counts


def test_the_outcome_of_a_trial_depends_on_its_state_and_attributes():
    for state, attributes, expected in (
        (TrialState.PRUNED, {}, "pruned"),
        (TrialState.PRUNED, {FAILURE: "diverged"}, "failed"),  # the sampler sees it as pruned
        (TrialState.FAIL, {}, "failed"),
        (TrialState.RUNNING, {PAUSED: None}, "running"),
        (TrialState.RUNNING, {PAUSED: 3}, "paused"),
    ):
        trial = create_trial(state=state, user_attrs=attributes)
        assert TrialRecord(trial).outcome == expected


def failed_trial(kind, reason):
    return create_trial(state=TrialState.FAIL, user_attrs={FAILURE: kind, REASON: reason})


def test_failures_are_counted_by_kind_the_most_frequent_first():
    once = failed_trial("timeout", "too long")
    first, second, third = (failed_trial("error", reason) for reason in ("a", "b", "a"))
    complete, unexplained = create_trial(value=1.0), create_trial(state=TrialState.FAIL)
    by_kind = count_failures([once, first, complete, second, third, unexplained])
    counted = [(failures.kind, failures.count) for failures in by_kind]
    assert counted == [("error", 3), ("timeout", 1), ("unexplained", 1)]
    errors = by_kind[0]
    assert errors.trials == [first, second, third]
    assert errors.first_reason == "a"
    assert errors.by_reason() == {"a": [first, third], "b": [second]}
    assert by_kind[2].first_reason == "no reason is stored"
    assert count_failures([complete]) == []
