"""The commands of `studyloom`, and the command of a study from its config to its answer.

Each command is a function with its arguments, in a module for each group of them. Nothing that
takes long is imported before a command is run: `--help` waits for no torch, Optuna or Hydra.
"""

__all__ = ["documents", "options", "outputs", "parser", "run_study", "search"]
