"""The studies of the repository, one module each; their configs are in the folder `CONF`."""

from pathlib import Path

CONF = str(Path(__file__).resolve().parent.parent / "conf")
