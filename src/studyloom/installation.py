"""How studyloom was installed, so that messages name a command that adds what is missing."""

import json
import shlex
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from urllib.parse import unquote, urlsplit


def pip_install(extra: str) -> str:
    """Returns the command that installs an extra, for bash and zsh.

    It names the checkout or the file from which studyloom was installed, as pip has noted it
    (PEP 610, direct_url.json), or else the package index.
    """
    source, editable = "studyloom", ""
    with suppress(PackageNotFoundError):  # a checkout on PYTHONPATH
        noted = json.loads(distribution("studyloom").read_text("direct_url.json") or "{}")
        if (address := urlsplit(noted.get("url", ""))).scheme == "file":
            source = unquote(address.path)
            editable = "-e " * noted.get("dir_info", {}).get("editable", False)
    return f"pip install {editable}{shlex.quote(f'{source}[{extra}]')}"
