"""The commands of `studyloom`: their arguments, help and examples, and what each of them does.

A module holds a group of commands, and each command is an `Entry` of its `COMMANDS`. Nothing that
takes long is imported before a command is run: `--help` waits for no torch, Optuna or Hydra.
"""

__all__ = ["parser"]
