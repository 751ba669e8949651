"""Why a trial failed: finds the cause in the exception that ended it."""

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
from studyloom.user_code.tracebacks import format_users_traceback

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
    """Returns the failure of a trial that an exception has ended: its kind, reason and details.

    The details are the output of a command, or the end of the traceback in the user's code.
    """
    text = error_text(error)
    match error:
        case Diverged():
            return Failure(DIVERGED, text)
        case Infeasible():
            return Failure(INFEASIBLE, text)
        case UndefinedMetric():
            return Failure(UNDEFINED, text)
        case TimedOut():
            return Failure(TIMEOUT, text)
        case CommandFailed():  # its text says that it was a command, and how it ended
            if ran_out_of_memory(error):
                return Failure(OUT_OF_MEMORY, text)
            return Failure(ERROR, text, error.output)
    text_with_class = f"{type(error).__name__}: {text}".removesuffix(": ")  # the text may be empty
    if ran_out_of_memory(error):
        return Failure(OUT_OF_MEMORY, text_with_class)
    traceback_lines = format_users_traceback(error).splitlines()
    details = "\n".join(traceback_lines[-TRACEBACK_LINES:])
    if isinstance(error, ConfigError):  # its text names the key, and needs no class
        return Failure(ERROR, text, details)
    return Failure(ERROR, text_with_class, details)


def ran_out_of_memory(error: BaseException) -> bool:
    """Returns whether an exception says that the memory of a GPU or of the host did not suffice.

    The message of a command that failed counts too: it has the last lines that the command printed.
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = error_text(error).lower()
    return any(phrase in text for phrase in NO_MEMORY)


def find_gpu_error(error: BaseException) -> str | None:
    """Returns the error that has left this process unable to use its GPU; None if none has.

    Looks through the causes of an exception too, since the user's code may have met the error and
    raised another one, such as optuna.TrialPruned.
    """
    cause: BaseException | None = error
    while cause is not None:
        text = error_text(cause)
        names_broken_gpu = any(phrase in text.lower() for phrase in BROKEN_GPU)
        is_of_this_process = not isinstance(cause, CommandFailed)
        if names_broken_gpu and is_of_this_process and not ran_out_of_memory(cause):
            return f"{type(cause).__name__}: {text}".splitlines()[0]
        cause = cause.__cause__ or cause.__context__
    return None


def has_lost_gpu() -> bool:
    """Returns whether this process has used a GPU by CUDA or HIP, and can no longer."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return False
    try:
        torch.cuda.synchronize()  # any call raises the error that has made the GPU unusable
    except RuntimeError:
        return True
    return False
