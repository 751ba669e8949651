"""How studyloom was installed, so that messages name a command that adds what is missing."""

import json
import shlex
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from urllib.parse import unquote, urlsplit


def pip_install(extra: str) -> str:
    """Returns the command that installs an extra, for bash and zsh.

    It names the checkout or the file from which studyloom was installed, or else its name in the
    package index. pip records the origin of a package in direct_url.json (PEP 610).
    """
    source = "studyloom"
    option = ""
    with suppress(PackageNotFoundError):  # a checkout on PYTHONPATH is not installed
        origin = json.loads(distribution("studyloom").read_text("direct_url.json") or "{}")
        url = urlsplit(origin.get("url", ""))
        if url.scheme == "file":
            source = unquote(url.path)
            if origin.get("dir_info", {}).get("editable", False):
                option = "-e "
    requirement = shlex.quote(f"{source}[{extra}]")
    return f"pip install {option}{requirement}"
