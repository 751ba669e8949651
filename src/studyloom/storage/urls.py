"""TODO storage.urls."""

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from studyloom.errors import StorageError


def parse_url(url: str) -> URL:
    """A storage URL with the driver that we use; relative SQLite paths stay relative to the working directory."""
    try:
        address = make_url(url)
    except ArgumentError:
        raise StorageError(
            "storage.url: this is no database URL; write sqlite:///folder/study.db or postgresql://user@host/name"
        ) from None
    match address.get_backend_name():
        case "postgresql" | "postgres":
            if isinstance(
                password := address.query.get("password"), str
            ):  # libpq's other place for it
                address = address.difference_update_query(["password"]).set(password=password)
            return address.set(drivername="postgresql+psycopg")
        case "sqlite" if address.database and address.database != ":memory:":
            return address
        case "sqlite":
            raise StorageError(
                f"storage.url: {url} is a database in memory, which workers cannot share; name a file"
            )
    raise StorageError(
        f"storage.url: {without_password(address)} is neither SQLite nor PostgreSQL, the databases that studyloom is tested on"
    )


def without_password(address: URL) -> str:
    """A URL for people, without its password."""
    return address.render_as_string(hide_password=True)
