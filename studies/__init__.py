"""Studies: a page each. `CONF` is where their configs lie."""

from pathlib import Path

CONF = str(Path(__file__).resolve().parent.parent / "conf")
