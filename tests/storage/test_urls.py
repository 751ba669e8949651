"""Storage URLs: parsed once, with our driver, and shown without passwords."""

import traceback

import pytest
from commands import CANARY

from studyloom.errors import StorageError
from studyloom.storage.urls import has_several_hosts, parse_url, without_password

URLS = [
    "sqlite:///study.db",
    "sqlite:////absolute/study.db",
    "postgresql://u@h/d",
    f"postgres://u:{CANARY}@h:5433/d?sslmode=require",
    f"postgresql+psycopg2://u@h/d?password={CANARY}",
    f"postgresql://u:{CANARY}@a:5432,b:5433/d?target_session_attrs=read-write",
    f"postgresql://u:{CANARY}@/d?host=a:5432,b:5433&target_session_attrs=read-write",
    f"postgresql://u@h/d?sslmode=require&sslpassword={CANARY}",
]


def test_parsing_twice_changes_nothing_and_a_printed_url_has_no_password():
    for url in URLS:
        address = parse_url(url)
        assert parse_url(address) == address
        assert parse_url(address.render_as_string(hide_password=False)) == address
        assert address.drivername in ("sqlite", "postgresql+psycopg")
        assert CANARY not in without_password(address)


@pytest.mark.parametrize(("query", "user"), [("&user=ann", "ann"), ("", "bob")])
def test_a_password_in_the_query_survives_without_a_user_before_the_host(query, user, monkeypatch):
    """SQLAlchemy writes no password where it has no user; libpq knows one all the same."""
    monkeypatch.setenv("PGUSER", "bob")
    address = parse_url(f"postgresql://h/d?password={CANARY}{query}")
    assert (address.username, address.password) == (user, CANARY)
    assert CANARY in address.render_as_string(hide_password=False)
    assert parse_url(address) == address


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (f"no url with {CANARY}", "storage.url must be a database URL, such as sqlite:///"),
        (f"mysql://u:{CANARY}@h/d", r"must name a SQLite or PostgreSQL .*got mysql://u:\*\*\*@h/d"),
        ("sqlite://", "must name a file, .*in memory; got sqlite://$"),
        ("sqlite:///:memory:", "must name a file, .*in memory; got sqlite:///:memory:$"),
    ],
)
def test_a_refused_url_is_shown_without_its_password(url, words):
    with pytest.raises(StorageError, match=words) as caught:
        parse_url(url)
    assert CANARY not in "".join(traceback.format_exception(caught.value))


def test_several_hosts_as_libpq_writes_them_reach_the_driver():
    for form, hosts, ports in (
        ("u@a:5432,b:5433/d?", "a,b", "5432,5433"),
        ("u@a,b:5433/d?", "a,b", ",5433"),  # the first has the default
        ("u@a,b/d?", "a,b", ","),
        ("u@/d?host=a,b&port=5432,5433&", "a,b", "5432,5433"),
        ("u@/d?host=/tmp/x,/tmp/y&port=5432,5433&", "/tmp/x,/tmp/y", "5432,5433"),
    ):
        address = parse_url(f"postgresql://{form}target_session_attrs=read-write")
        _, given = address.get_dialect()().create_connect_args(address)
        assert (given["user"], given["host"], given["port"]) == ("u", hosts, ports)
        assert given["target_session_attrs"] == "read-write"
        assert has_several_hosts(address)
        assert parse_url(address.render_as_string(hide_password=False)) == address


def test_a_comma_in_a_password_is_not_a_list_of_hosts():
    for form in ("1234,{}", "{},1234", "a,b/{}", "a/{},b", "a?{},b", "a,b?{}"):
        password = form.format(CANARY)
        for place in ("h:1/d", "h/d?application_name=x@y", "a:5432,b:5433/d?application_name=x@y"):
            address = parse_url(f"postgresql://user:{password}@{place}")
            assert (address.username, address.password) == ("user", password)
            assert has_several_hosts(address) == place.startswith("a:")
            assert address.host == (None if place.startswith("a:") else "h")
            assert CANARY not in without_password(address)
