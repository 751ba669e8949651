"""Removes what a trial leaves in its process, which the next trial there would meet."""

import contextlib
import gc
import sys

import torch


def clean_up_after_trial() -> None:
    """Forgets the graphs that a trial has compiled, and returns its memory to the GPU."""
    _forget_compiled_graphs()
    _return_gpu_memory()


def _forget_compiled_graphs() -> None:
    """Makes `torch.compile` forget all graphs, if the user's code has imported the compiler.

    PyTorch compiles a function for at most eight kinds of networks (`recompile_limit`), and runs it
    uncompiled for all others. Without this call only the first trials of a process are compiled.
    """
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


def _return_gpu_memory() -> None:
    """Returns memory that is no longer used to the GPU, where other processes may need it.

    A network that refers to itself, as that of a trainer often does, keeps its memory until Python
    collects garbage. And PyTorch keeps the memory of a tensor that is gone for its next ones.
    """
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        gc.collect()
        # A GPU that has failed raises an error, as it does in the next trial, which reports it.
        with contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        gc.collect()
        torch.mps.empty_cache()
