"""How studyloom was installed, so that messages name a command that adds what is missing."""

import json
import shlex
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from urllib.parse import unquote, urlsplit


def pip_install(extra: str) -> str:
    """Returns the command that installs an extra, such as `pip install 'studyloom[ray]'`.

    It names the checkout or file from which studyloom was installed, or else its name in the
    package index. pip records where a package is from in direct_url.json (PEP 610). The quotes are
    for bash and zsh.
    """
    source = "studyloom"
    option = ""
    with suppress(PackageNotFoundError):  # a checkout on PYTHONPATH is not installed
        document = distribution("studyloom").read_text("direct_url.json") or "{}"
        direct_url = json.loads(document)
        url = urlsplit(direct_url.get("url", ""))
        if url.scheme == "file":
            source = unquote(url.path)
            folder = direct_url.get("dir_info", {})
            if folder.get("editable", False):
                option = "-e "
    requirement = shlex.quote(f"{source}[{extra}]")
    return f"pip install {option}{requirement}"
