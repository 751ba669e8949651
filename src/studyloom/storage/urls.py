"""Storage URLs: parsed once, with the driver that studyloom uses, and shown without passwords.

`embedded_postgres:///folder` (four slashes for /folder) names an embedded server, which
`start_embedded_server` starts.
"""

import getpass
import os
import re
from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from studyloom.errors import StorageError
from studyloom.files import mark_trusted
from studyloom.storage.embedded_server import SCHEME, start_or_join
from studyloom.text import mask_passwords

# Several hosts instead of one, as libpq allows: //user@a:5432,b:5433/name. The part before an @ is
# user and password, which may have commas too, unless a query begins before it: ?name=x@y.
HOSTS = re.compile(
    r"(?P<before>postgres(?:ql)?(?:\+\w+)?://(?:[^:/?]*(?::(?![^@]*\?\w+=)[^@]*)?@)?+)"
    r"(?P<hosts>[^/?@]*,[^/?@]*)(?=[/?]|$)"
)


def parse_url(url: str | URL) -> URL:
    """Parses a storage URL and checks that studyloom supports it.

    Relative SQLite paths stay relative to the working directory. A second call, with the result,
    changes nothing.

    Returns:
        The URL. For PostgreSQL it has psycopg 3 as the driver, and the password before the host,
        where SQLAlchemy hides it. Several hosts are in its query, as host=a:5432 and host=b:5433.

    Raises:
        StorageError: It cannot be parsed, or names another kind of database or one in memory.
    """
    try:
        address = _make_url(url)
    except (ArgumentError, ValueError):  # the second for a port that is no number
        # The text is not shown, since it may hold a password anywhere.
        raise StorageError(
            "storage.url must be a database URL, such as sqlite:///folder/study.db or "
            "postgresql://user@host/name"
        ) from None
    match address.get_backend_name():
        case "postgresql" | "postgres":
            address = _move_password_from_query(address)
            return address.set(drivername="postgresql+psycopg")
        case "sqlite":
            _check_is_file(address)
            return address
    raise StorageError(
        "storage.url must name a SQLite or PostgreSQL database, the ones that studyloom is tested "
        f"on; got {without_password(address)}"
    )


def _move_password_from_query(address: URL) -> URL:
    """Moves the password of PostgreSQL from the query of a URL to the place before the host.

    For example `postgresql://ann@host/db?password=secret` becomes
    `postgresql://ann:secret@host/db`. SQLAlchemy hides a password only there.
    """
    password = address.query.get("password")
    if isinstance(password, str):
        address = address.difference_update_query(["password"]).set(password=password)
    if address.password is not None and not address.username:
        # SQLAlchemy drops a password without a user, so the URL gets the user that libpq,
        # PostgreSQL's client library, would take.
        user = address.query.get("user") or os.environ.get("PGUSER") or getpass.getuser()
        address = address.difference_update_query(["user"]).set(username=str(user))
    return address


def _check_is_file(address: URL) -> None:
    """Raises StorageError if a SQLite database is in memory, as it is without a name."""
    if address.database and address.database != ":memory:":
        return
    if address.database:
        path = f"/{address.database}"
    else:
        path = ""
    raise StorageError(
        "storage.url must name a file, since workers cannot share a database in memory; "
        f"got sqlite://{path}"
    )


def _make_url(url: str | URL) -> URL:
    """Parses a URL; SQLAlchemy cannot parse several hosts, which are put into its query."""
    if isinstance(url, str):
        several_hosts = HOSTS.match(url)
        if several_hosts is not None:
            before_hosts = several_hosts["before"]
            after_hosts = url[several_hosts.end() :]
            hosts = several_hosts["hosts"].split(",")
            return make_url(before_hosts + after_hosts).update_query_dict({"host": hosts})
    return make_url(url)


def sqlite_url(path: Path) -> URL:
    """Returns the URL of a SQLite file, whose name may have characters such as ? and #."""
    return URL.create("sqlite", database=str(path.absolute()))


def embedded_server_folder(url: str) -> Path | None:
    """Returns the absolute folder of an embedded server; None for any other URL."""
    scheme, _, path = url.partition(":///")
    if scheme != SCHEME:
        return None
    return Path(path).absolute()


def start_embedded_server(url: str, *, create: bool = False, trusted: bool = False) -> str:
    """Starts or joins the embedded server that a URL names, for as long as this process lives.

    Args:
        create: Whether the server is created if it is missing, as by a command that runs a study.
        trusted: Whether the user says that the folder of the server is theirs.

    Returns:
        The URL of the server; a URL that names no embedded server, unchanged.

    Raises:
        ServerError: The wheel is missing, the server does not start, or this user's own command
            has not made its folder.
    """
    folder = embedded_server_folder(url)
    if folder is None:
        return url
    if trusted:
        mark_trusted(folder)
    return start_or_join(folder, create=create)


def has_several_hosts(address: URL) -> bool:
    return "," in ",".join(address.normalized_query.get("host", ()))


def without_password(address: URL) -> str:
    """Formats a URL for people, with *** instead of its password."""
    # SQLAlchemy hides the password before the host; the query may have others, such as sslpassword.
    return mask_passwords(address.render_as_string(hide_password=True))
