"""Training: networks trained as generators of epochs, and checkpoints from which they go on.

Nothing here knows why a network is trained: neither Optuna nor Hydra is imported. Whoever iterates
may report, prune, save a checkpoint, or stop.
"""

__all__ = ["checkpoint", "job", "optimizer_step", "trainer"]
