"""The study: what happens to a question, slot by slot, in the database.

The stored study, the worker that claims slots and runs trials, the reports it makes, failures,
provenance, and stopping.
"""

__all__ = [
    "bounds",
    "control",
    "earlier_studies",
    "enqueue",
    "identity",
    "job",
    "opening",
    "replay",
    "stopping",
    "stored_study",
    "trials",
    "worker",
]
