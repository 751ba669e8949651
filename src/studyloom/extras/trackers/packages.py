"""Whether the package of a tracker is installed."""

import importlib.util

from studyloom.errors import ConfigError


def require(package: str, extra: str) -> None:
    """Checks that a package is installed, without importing it.

    Raises:
        ConfigError: it is not.
    """
    if importlib.util.find_spec(package) is None:
        raise ConfigError(
            [f"track={extra}: needs the package {package}: pip install 'studyloom[{extra}]'"]
        )
