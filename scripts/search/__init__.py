"""Methods of search, replayed in minutes on surrogates, recorded learning curves and tables.

`tables` and `surrogates` hold what there is to replay, `recording` makes our own curves,
`simulator` runs the worker loop on them, `peers` other optimizers, `methods` names what is
compared, and `comparison` prints it.
"""
