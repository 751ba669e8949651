"""Why the winner answers as it does: on the test set, at its single opening, for the report alone.

What there is to say follows from the data: how sure a classifier is and how often it is right, how
it does on each class or group, which column of a table it needs, which part of a picture or which
words of a text misled it.
"""

from studyloom.extras.explain.explain import explain

__all__ = ["explain"]
