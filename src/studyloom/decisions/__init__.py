"""Decisions of a search: pure functions of the stored trials.

They choose the next configuration (samplers, warm starts), stop or promote a trial (pruners, rungs,
rounds), and end the search early. Every worker that reads the same trials decides the same.
"""

__all__ = [
    "asha",
    "auto_pruner",
    "auto_sampler",
    "earlier_studies",
    "early_end",
    "extrapolation",
    "gaussian_process",
    "gaussian_process_sampler",
    "given_samplers",
    "placement",
    "rounds",
    "samplers",
    "strategy",
    "warm_start",
]
