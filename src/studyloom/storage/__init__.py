"""Storage: the database that workers share, SQLite on one host or PostgreSQL anywhere.

Every call waits out an outage. The ledger, a table of our own, keeps the budget and the leases.
SQLAlchemy is imported in this room, and torch is not.
"""

__all__ = [
    "attributes",
    "checks",
    "connections",
    "database",
    "embedded_server",
    "ledger",
    "outbox",
    "sql",
    "trial_buffer",
    "urls",
]
