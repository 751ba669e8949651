"""Predictions for files: images, arrays, sounds and tables, which a network gets as inputs.

The core predicts for arrays and tensors, see `studyloom.load_winner`.
"""

__all__ = ["predicting"]
