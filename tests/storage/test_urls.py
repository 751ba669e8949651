"""Storage URLs: parsed once, with our driver, and shown without passwords."""

import traceback

import pytest
from commands import CANARY

from studyloom.errors import StorageError
from studyloom.storage.urls import parse_url, without_password

URLS = [
    "sqlite:///study.db",
    "sqlite:////absolute/study.db",
    "postgresql://u@h/d",
    f"postgres://u:{CANARY}@h:5433/d?sslmode=require",
    f"postgresql+psycopg2://u@h/d?password={CANARY}",
]


@pytest.mark.parametrize("url", URLS)
def test_parsing_what_has_been_parsed_changes_nothing(url):
    address = parse_url(url)
    assert parse_url(address) == address
    assert parse_url(address.render_as_string(hide_password=False)) == address


@pytest.mark.parametrize("url", URLS)
def test_a_url_for_people_has_no_password(url):
    assert CANARY not in without_password(parse_url(url))


@pytest.mark.parametrize(
    "url", ["postgresql://u@h/d", "postgres://u@h/d", "postgresql+psycopg://u@h/d"]
)
def test_every_way_to_write_postgresql_uses_psycopg_3(url):
    assert without_password(parse_url(url)) == "postgresql+psycopg://u@h/d" or "postgres" in url
    assert parse_url(url).drivername == "postgresql+psycopg"


@pytest.mark.parametrize(("query", "user"), [("&user=ann", "ann"), ("", "bob")])
def test_a_password_in_the_query_survives_without_a_user_before_the_host(query, user, monkeypatch):
    """SQLAlchemy writes no password where it has no user; libpq knows one all the same."""
    monkeypatch.setenv("PGUSER", "bob")
    address = parse_url(f"postgresql://h/d?password={CANARY}{query}")
    assert (address.username, address.password) == (user, CANARY)
    assert CANARY in address.render_as_string(hide_password=False)
    assert parse_url(address) == address


def test_a_password_in_the_query_becomes_the_one_that_is_hidden():
    address = parse_url(f"postgresql://u@h/d?password={CANARY}&sslmode=require")
    assert address.password == CANARY
    assert dict(address.query) == {"sslmode": "require"}


def test_a_relative_path_stays_relative():
    assert parse_url("sqlite:///runs/study.db").database == "runs/study.db"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (f"no url with {CANARY}", "storage.url must be a database URL, such as sqlite:///"),
        (f"mysql://u:{CANARY}@h/d", r"must name a SQLite or PostgreSQL .*got mysql://u:\*\*\*@h/d"),
        ("sqlite://", "must name a file, .*in memory; got sqlite://$"),
        ("sqlite:///:memory:", "must name a file, .*in memory; got sqlite:///:memory:$"),
    ],
)
def test_what_is_refused_is_shown_without_its_password(url, words):
    with pytest.raises(StorageError, match=words) as caught:
        parse_url(url)
    assert CANARY not in "".join(traceback.format_exception(caught.value))
