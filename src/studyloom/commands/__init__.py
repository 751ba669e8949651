"""The commands of `studyloom`, and the command of a study from its config to its result.

Each command is a function with its arguments; a module holds a group of them. Slow imports come
only when a command runs: `--help` does not import torch, Optuna or Hydra.
"""

__all__ = ["documents", "options", "outputs", "parser", "run_call", "run_study"]
