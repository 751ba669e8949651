"""A server with an application, and requests to it, for the tests of dashboard and guard."""

import contextlib
import http.client
import threading

from studyloom.views.dashboard import Handler, bind


class Impatient(Handler):
    timeout = 1.0  # seconds for a connection that a browser opens without a request


@contextlib.contextmanager
def served(app):
    """Serves an application on a free port, in a thread, and yields the server."""
    with bind(0) as server:
        server.daemon_threads = False  # when it closes, it waits for its requests
        server.RequestHandlerClass = Impatient
        server.set_app(app)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ask(port: int, path: str, method: str = "GET", body: str | None = None, **headers: str):
    """Sends a request, and returns status, headers and body; header names have _ for -."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        own = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, {"Content-Type": "application/json"} | own)
        result = connection.getresponse()
        return result.status, result.headers, result.read().decode()
    finally:
        connection.close()
