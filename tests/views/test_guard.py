import re
import socket

import pytest
from serving import ask, served

from studyloom.views.dashboard import LOOPBACK, Guard, bind


def hello(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Access-Control-Allow-Origin", "*")])
    return [b"hello"]


@pytest.fixture
def open_port():
    """The port of a guard without a token."""
    with served(Guard(hello, (*LOOPBACK, "gpu1.example.org"))) as server:
        yield server.server_port


@pytest.fixture
def token_port():
    """The port of a guard whose token is `s3cret & ü`."""
    with served(Guard(hello, LOOPBACK, "s3cret & ü")) as server:
        yield server.server_port


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:8080", "127.0.0.1:8080", "[::1]:8080", "[::1]", "gpu1.example.org:9"],
)
def test_requests_for_a_name_of_this_machine_are_answered(open_port, host):
    assert ask(open_port, "/", Host=host)[::2] == (200, "hello")


@pytest.mark.parametrize(
    "host",
    [
        *(
            "evil.example.org",
            "evil.example.org:8080",
            "localhost.evil.example.org",
            "127.0.0.1.nip.io",
            "0.0.0.0:8080",
        ),
        *(
            "",
            "localhost@evil.example.org",
            "localhost, evil.example.org",
            "[::1",
            "[",
            "127.0.0.2",
            "2130706433",
        ),
    ],
)
def test_requests_for_another_name_are_refused(open_port, host):
    status, _, body = ask(open_port, "/", Host=host)
    assert status == 403
    assert "hello" not in body


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
def test_requests_from_pages_of_other_sites_are_refused(open_port, method):
    def status(origin: str) -> int:
        return ask(open_port, "/", method, Host=f"localhost:{open_port}", Origin=origin)[0]

    assert status(f"http://localhost:{open_port}") == 200
    for origin in (
        "http://evil.example.org",
        "null",
        "",
        "http://localhost:3000",
        f"http://127.0.0.1:{open_port}",
    ):
        assert status(origin) == 403


def test_without_the_token_nothing_is_served(token_port):
    for path in (
        "/",
        "/dashboard",
        "/api/studies",
        "/static/bundle.js",
        "/?token=",
        "/?token=wrong",
        "/?Token=s3cret",
    ):
        status, headers, body = ask(token_port, path)
        assert (status, headers["Set-Cookie"]) == (401, None)
        assert "hello" not in body
    for header in ("Bearer", "Bearer wrong", "Bearer \xff", "Basic s3cret"):
        assert ask(token_port, "/", Authorization=header)[0] == 401
    for cookie in (
        f"studyloom-{token_port}=",
        f"studyloom-{token_port}=s3cret",
        "studyloom=x",
        ";;=;",
        "\xff",
    ):
        assert ask(token_port, "/", Cookie=cookie)[0] == 401


def test_with_the_token_all_is_served(token_port):
    bearer = "Bearer " + "s3cret & ü".encode().decode("latin-1")
    assert ask(token_port, "/api", Authorization=bearer)[::2] == (200, "hello")
    status, headers, _ = ask(token_port, "/dashboard/studies/1?x=a%20b&token=s3cret+%26+%C3%BC")
    assert (status, headers["Location"]) == (303, "/dashboard/studies/1?x=a+b")
    cookie, *attributes = headers["Set-Cookie"].split("; ")
    assert attributes == ["Path=/", "HttpOnly", "SameSite=Strict"]
    assert "s3cret" not in cookie
    assert ask(token_port, "/api", Cookie=f"a[b=c; {cookie}; d")[::2] == (200, "hello")


def test_the_token_helps_no_other_name_and_no_other_site(token_port):
    path = "/?token=s3cret+%26+%C3%BC"
    assert ask(token_port, path, Host="evil.example.org")[0] == 403
    assert ask(token_port, path, Origin="http://evil.example.org")[0] == 403


@pytest.mark.parametrize(
    "path",
    [
        "//evil.example.org/",
        "/%2Fevil.example.org/",
        "/%5Cevil.example.org",
        "/%0d%0aX-Evil:%201",
        "/\\evil",
    ],
)
def test_the_redirect_leads_to_this_dashboard(token_port, path):
    _, headers, _ = ask(token_port, f"{path}?token=s3cret+%26+%C3%BC")
    assert re.match(r"/(?![/\\])", headers["Location"])
    assert headers["X-Evil"] is None


def test_every_answer_has_the_headers_that_keep_others_out(token_port, open_port):
    for _, headers, _ in (ask(open_port, "/"), ask(open_port, "/", Host="x"), ask(token_port, "/")):
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["X-Frame-Options"] == "SAMEORIGIN"
        assert headers["Access-Control-Allow-Origin"] is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_host_that_is_no_name_is_refused_with_the_way_out(host):
    with pytest.raises(
        ValueError, match=f"give that name, such as --host {re.escape(socket.gethostname())}"
    ):
        bind(host, 0)


@pytest.mark.parametrize(
    ("host", "port", "words"),
    [
        ("203.0.113.7", 8080, "--host 203.0.113.7 --port 8080: .*is it this machine's"),
        ("no such host", 8080, "--host no such host --port 8080"),
        ("127.0.0.1", 70000, "--port must be a number from 0 .*; got 70000"),
        ("127.0.0.1", -1, "--port must be a number from 0 .*; got -1"),
    ],
)
def test_an_address_that_cannot_be_served_is_named(host, port, words):
    with pytest.raises(ValueError, match=words):
        bind(host, port)


def test_a_taken_port_gives_way_to_the_next_free_one():
    with bind("127.0.0.1", 0) as first:
        if first.server_port > 65000:
            pytest.skip("few ports above")
        with (
            bind("127.0.0.1", first.server_port) as second,
            bind("127.0.0.1", first.server_port) as third,
        ):
            assert (
                first.server_port < second.server_port < third.server_port < first.server_port + 100
            )


def test_a_token_in_an_address_is_taken_out_of_it_also_for_who_is_in_already(token_port):
    path = "/dashboard?token=s3cret+%26+%C3%BC"
    cookie = ask(token_port, path)[1]["Set-Cookie"].partition(";")[0]
    status, headers, body = ask(token_port, path, Cookie=cookie)
    assert (status, headers["Location"], body) == (303, "/dashboard", "")


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_page_of_another_site_may_link_here_and_embed_nothing(open_port, site):
    def status(method: str, mode: str) -> int:
        return ask(open_port, "/", method, Sec_Fetch_Site=site, Sec_Fetch_Mode=mode)[0]

    assert status("GET", "navigate") == 200
    assert status("POST", "navigate") == 403
    for mode in ("no-cors", "cors", "websocket", ""):
        assert status("GET", mode) == 403
    assert ask(open_port, "/", Sec_Fetch_Site="same-origin", Sec_Fetch_Mode="cors")[0] == 200


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (f"Content-Length: {64 * 2**20 + 1}", 413),
        ("Content-Length: " + "9" * 40, 400),
        ("Content-Length: -1", 400),
        ("Content-Length: abc", 400),
        ("Content-Length: ²", 400),
        ("Transfer-Encoding: chunked", 411),
    ],
)
def test_a_body_of_no_size_or_too_large_a_size_is_not_read(open_port, header, status):
    lines = ["POST /api/studies HTTP/1.1", "Host: localhost", header, "", ""]
    with socket.create_connection(("127.0.0.1", open_port), timeout=20) as connection:
        connection.sendall("\r\n".join(lines).encode())
        answer = connection.makefile("rb").readline()
    assert int(answer.split()[1]) == status


@pytest.mark.parametrize("path", ["/arti%FFfacts/1/2", "/%80artifacts/1/2", "/%C3"])
def test_a_path_of_which_the_dashboard_would_leave_something_out_is_refused(open_port, path):
    assert ask(open_port, path)[0] == 400


@pytest.mark.parametrize(
    ("path", "alone"),
    [
        *[(path, True) for path in ("/artifacts/1/2", "//artifacts/1/2", "/Artifacts/1", "/other")],
        *[(path, False) for path in ("/", "/events", "/dashboard/studies/1", "/static/a.js")],
    ],
)
def test_what_is_no_page_of_ours_may_be_an_artifact_and_has_an_origin_of_its_own(
    open_port, path, alone
):
    policy = ask(open_port, path)[1]["Content-Security-Policy"]
    assert (policy == "sandbox allow-scripts") is alone
