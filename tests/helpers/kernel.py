"""Runs the cells of a file as a notebook does: in a `__main__` without a file, whose sources Python
knows by `linecache` alone. It is started by `python -c`."""

import json
import linecache
import sys
from pathlib import Path


def run_cells(path):
    main = sys.modules["__main__"]
    assert not hasattr(main, "__file__")
    for number, cell in enumerate(json.loads(Path(path).read_text())):
        name = f"<cell {number}>"
        linecache.cache[name] = (len(cell), None, cell.splitlines(keepends=True), name)
        exec(compile(cell, name, "exec"), vars(main))
