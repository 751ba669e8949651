"""The search, judged: methods are replayed on recorded learning curves and tables, in minutes.

`tables` holds what there is to replay, `recording` makes the curves of our own, `simulator` runs
the worker loop on them, `methods` names what is compared, and `comparison` prints it.
"""
