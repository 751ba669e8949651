"""The CSV file of optuna-dashboard, without formulas."""

import csv
import io
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from studyloom.text import without_formula

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment


def answer_csv(
    app: "WSGIApplication", environ: "WSGIEnvironment", start_response: "StartResponse"
) -> Iterable[bytes]:
    """Answers with a CSV file of an application, in which no cell is a formula to a spreadsheet.

    Args:
        app: the application, whose cells may be anybody's: parameters, attributes and their names.
        environ: of the request.
        start_response: as WSGI gives it to an application.
    """
    begun: list[tuple[str, list[tuple[str, str]]]] = []

    def start(status: str, headers: list[tuple[str, str]], *_: Any) -> Any:
        begun.append((status, headers))
        return lambda content: None

    content = b"".join(app(environ, start))
    status, headers = begun[-1]
    if status.startswith("200"):
        csv.field_size_limit(sys.maxsize)  # a cell may hold all curves of a trial
        text = io.StringIO(newline="")
        rows = csv.reader(io.StringIO(content.decode(errors="replace"), newline=""))
        csv.writer(text).writerows(map(without_formula, row) for row in rows)
        content = text.getvalue().encode()
    headers = [header for header in headers if header[0].lower() != "content-length"]
    start_response(status, [*headers, ("Content-Length", str(len(content)))])
    return [content]
