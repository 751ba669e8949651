"""Storage: the database that workers share, SQLite on one host or PostgreSQL anywhere.

Calls wait for a database that is away. The ledger, studyloom's own table, keeps the budget and the
leases. A URL is parsed where it comes in, by `urls.parse_url`; from there on it is a SQLAlchemy
URL. SQLAlchemy and Optuna's private parts are imported only in this layer; torch is not.
"""

__all__ = [
    "attributes",
    "call_state",
    "cells",
    "command_record",
    "connections",
    "creation_lock",
    "database",
    "failures",
    "ledger",
    "opening",
    "optuna_internals",
    "reach",
    "redo",
    "retry",
    "slot_table",
    "sql",
    "standings",
    "stored_study",
    "trial_buffer",
    "trial_record",
    "trial_tables",
    "urls",
]
