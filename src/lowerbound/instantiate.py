"""Objects from configuration: Hydra's `instantiate`, with plain containers and errors that name the option."""

from __future__ import annotations

import re
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate as hydra_instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

_DOES_NOT_FIT = (ValueError, TypeError, ImportError, InstantiationException, MisconfigurationException)


def instantiate(config: DictConfig, *args: object, **kwargs: object) -> Any:
    """What `config` describes: the call of its ``_target_``, innermost first.

    Args:
        config: a node of the configuration; lists and mappings in it become plain lists and dicts.
        args: positional arguments of the outermost call.
        kwargs: further keyword arguments of the outermost call; they stand over those of `config`.

    Raises:
        ValueError: an option does not fit; the message is the constructor's own, with the option's key.
        Exception: whatever else a constructor raises, as it is.
    """
    try:
        return hydra_instantiate(config, *args, _convert_="object", **kwargs)
    except InstantiationException as error:
        cause = error.__cause__
        if cause is None or isinstance(cause, _DOES_NOT_FIT):
            raise ValueError(_message(error, config)) from error
        raise cause from None


def _message(error: InstantiationException, config: DictConfig) -> str:
    """The constructor's message, with the key of the option that it is about."""
    cause: BaseException = error
    while isinstance(cause, (InstantiationException, ImportError)) and cause.__cause__ is not None:
        cause = cause.__cause__
    text = str(error).partition("\nfull_key:")[0] if cause is error else str(cause)
    if str(error).startswith("Error locating target"):
        text = f"{str(error).partition(',')[0]}: {text}"
    key = re.search(r"^full_key: (\S+)$", str(error), re.MULTILINE)
    where = _origin(config, key[1]) if key else ""
    if isinstance(cause, TypeError) and where:
        where += _given(config, where)
    return f"{text} (in {where})" if where else text


def _given(config: DictConfig, key: str) -> str:
    """The values at a key: what Python says of a wrong type names none."""
    node = OmegaConf.select(config._get_root(), key)
    values = dict(node) if isinstance(node, DictConfig) else {}
    plain = [f"{name}={value!r}" for name, value in values.items() if not isinstance(value, DictConfig) and not str(name).startswith("_")]
    return f", where {', '.join(plain)}" if plain else ""


def _origin(config: DictConfig, key: str) -> str:
    """The key under which the user finds what is at `key`: `prior` for `model.prior`, which is ``${prior}``."""
    root = OmegaConf.to_container(config._get_root(), resolve=False)
    segments = key.split(".")
    for depth, segment in enumerate(segments):
        root = root.get(segment) if isinstance(root, dict) else None
        link = re.fullmatch(r"\$\{([\w.]+)\}", root) if isinstance(root, str) else None
        if link is not None:
            return ".".join([link[1], *segments[depth + 1 :]])
    return key
