"""Explains the winner's predictions on the test set, in the same single use, for the report.

The data decide what is explained: how confident a classifier is and how often it is right, how
it does on each class or group, which column of a table it needs, which part of an image or which
words of a text misled it.
"""

from studyloom.extras.explain.explain import explain

__all__ = ["explain"]
