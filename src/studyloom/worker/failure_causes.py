"""Why a trial failed: finds the cause in the exception that ended it."""

import traceback

import torch

from studyloom.errors import (
    CommandFailed,
    ConfigError,
    Diverged,
    Infeasible,
    TimedOut,
    UndefinedMetric,
)
from studyloom.storage.failures import (
    DIVERGED,
    ERROR,
    INFEASIBLE,
    OUT_OF_MEMORY,
    TIMEOUT,
    UNDEFINED,
    Failure,
)
from studyloom.text import error_text

TRACEBACK_LINES = 12
# How libraries say that memory ran out, in lower case: PyTorch on CUDA, HIP, MPS, XPU and the CPU,
# cuBLAS, cuDNN and cuFFT, JAX, TensorFlow, C++ and the operating system.
NO_MEMORY = (
    "out of memory",
    "out_of_memory",
    "out_of_device_memory",
    "out_of_host_memory",
    "error_out_of_resources",
    "allocate memory",  # can't, cannot, failed to
    "not enough memory",
    "alloc_failed",
    "allocation_failed",
    "oom when allocating",
    "bad_alloc",
)
# How CUDA, HIP and XPU say that a process can no longer use its GPU, in lower case: each later call
# there raises the same error. Statuses are those of cuBLAS, cuDNN, cuSOLVER, cuSPARSE and hipBLAS.
BROKEN_GPU = (
    "device-side assert",
    "illegal memory access",
    "illegal instruction was encountered",
    "misaligned address",
    "invalid program counter",
    "hardware stack error",
    "not supported on global/shared address space",
    "unspecified launch failure",
    "launch timed out",
    "uncorrectable ecc error",
    "uncorrectable nvlink error",
    "context is destroyed",
    "unhandled cuda error",
    "cuda error: unknown error",
    "device_lost",
    "_status_execution_failed",
    "_status_internal_error",
    "_status_mapping_error",
    "_status_not_initialized",
    "cufft_exec_failed",
    "cufft_internal_error",
)


def explain(error: BaseException) -> Failure:
    """Returns the record of an exception that ended a trial."""
    text = error_text(error)
    reason = f"{type(error).__name__}: {text}".removesuffix(": ")  # the text may be empty
    if isinstance(error, CommandFailed):  # the text says it all
        reason = text
    match error:
        case Diverged():
            return Failure(DIVERGED, text)
        case Infeasible():
            return Failure(INFEASIBLE, text)
        case UndefinedMetric():
            return Failure(UNDEFINED, text)
        case TimedOut():
            return Failure(TIMEOUT, text)
        case _ if ran_out_of_memory(error):
            return Failure(OUT_OF_MEMORY, reason)
        case CommandFailed():
            return Failure(ERROR, reason, error.output)
        case ConfigError():  # the text says it all
            reason = text
    lines = "".join(traceback.format_exception(error)).rstrip().splitlines()
    return Failure(ERROR, reason, "\n".join(lines[-TRACEBACK_LINES:]))


def ran_out_of_memory(error: BaseException) -> bool:
    """Returns whether an exception says that the memory of a GPU or of the host did not suffice.

    The message of a command that failed counts too: it has the last lines that the command printed.
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = error_text(error).lower()
    return any(words in text for words in NO_MEMORY)


def broken_by(error: BaseException) -> str | None:
    """Returns which error has left this process unable to use its GPU; None if none has.

    The user's code may have met that error and raised another one, such as optuna.TrialPruned. An
    error of a command that failed is about another process.
    """
    link: BaseException | None = error
    while link is not None:
        text = error_text(link)
        is_named = any(phrase in text.lower() for phrase in BROKEN_GPU)
        is_of_this_process = not isinstance(link, CommandFailed)
        if is_named and is_of_this_process and not ran_out_of_memory(link):
            return f"{type(link).__name__}: {text}".splitlines()[0]
        link = link.__cause__ or link.__context__
    return None


def gpu_is_lost() -> bool:
    """Returns whether this process has used a GPU by CUDA or HIP, and can no longer."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
