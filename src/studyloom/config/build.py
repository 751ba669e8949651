"""TODO config.build."""

import functools
import inspect
from collections.abc import Sequence
from pkgutil import resolve_name
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from studyloom.config import trust
from studyloom.config.values import describe_error
from studyloom.errors import ConfigError
from studyloom.text import nearest

# Of this process: what may be named where the primary config is from elsewhere; empty where it is the page's own.
foreign_trust: list[Sequence[str]] = []


def build(section: DictConfig, **given: Any) -> Any:
    """What a section's `_target_` makes of its arguments, and of those `given` that it has a parameter for.

    Raises:
        ConfigError: the section has no `_target_`, or one that cannot be imported, or, where the primary config is from
            elsewhere, one that is not trusted.
    """
    key = section._get_full_key(None)
    if foreign_trust:
        trust.check_targets({key: OmegaConf.to_container(section, resolve=True)}, foreign_trust[-1])
    if "_target_" not in section:
        raise ConfigError([f"{key}: no _target_ says which class or function this is for"])
    name = section["_target_"]
    try:
        target = resolve_name(name)
    except Exception as error:  # whatever a user's module raises when it is imported
        hint = nearest(error.name, dir(error.obj)) if isinstance(error, AttributeError) else ""
        raise ConfigError([f"{key}._target_={name}: {describe_error(error)}{hint}"]) from error
    accepted = inspect.signature(target).parameters
    bound = {
        name: value for name, value in given.items() if name in accepted and name not in section
    }
    # Bound by us and not by Hydra, which turns what it is given into config nodes.
    make = instantiate(section, _convert_="all", _partial_=True)
    if section.get(
        "_partial_"
    ):  # as it is: Hydra's wrapper looks at each call anew, 0.08 ms of every step of training
        return functools.partial(make.func, *make.args, **make.keywords, **bound)
    return make(**bound)
