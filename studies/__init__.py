"""Studies that ship with the repository, one page each; their configs are in the folder `CONF`."""

from pathlib import Path

CONF = str(Path(__file__).resolve().parent.parent / "conf")
