"""The question: what a study asks, from a config to objectives that can be evaluated.

It is validated as a whole before trial 0. An objective goes on epoch by epoch and comes to a value;
training networks is one kind, a function of the user's own another.
"""

__all__ = ["costs", "function", "jobs", "objective", "preflight", "question", "rule", "validation"]
