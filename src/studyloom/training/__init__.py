"""Training: networks trained as generators of epochs, and the checkpoints they resume from.

Nothing here knows why a network is trained: neither Optuna nor Hydra is imported. The caller
iterates over the epochs, and may report, prune, save a checkpoint or stop after each of them.
"""

__all__ = [
    "batches",
    "checkpoint",
    "device",
    "job",
    "optimizer",
    "randomness",
    "states",
    "steps",
    "trainer",
]
