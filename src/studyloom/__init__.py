"""Optuna-based study orchestration for PyTorch. Nothing is imported here: `import studyloom` costs nothing."""

__version__ = "0.1.0"
