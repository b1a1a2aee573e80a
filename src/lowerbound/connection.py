"""Whether Weights & Biases can be reached, found out before it starts: it would ask for a key, or wait for an answer."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from configparser import ConfigParser, Error
from netrc import NetrcParseError, netrc
from pathlib import Path
from threading import Thread
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from lightning.pytorch.utilities import rank_zero_only

PUBLIC_HOST = "api.wandb.ai"  # the name in netrc files of the service whose address has changed since
HARMLESS = {"mode", "disabled", "entity", "project", "ignore_globs", "anonymous", "console", "silent", "quiet"}
KEY_VARIABLES = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")


@rank_zero_only
def say_offline(reason: str) -> None:
    """Say why nothing is sent, and how it is sent later."""
    print(f"W&B: offline, because {reason}; `wandb sync` on the run's wandb/ folder sends it later", file=sys.stderr)


def possible_mode(wanted: str | None) -> str:
    """The mode in which W&B can run without a prompt or a wait.

    Raises:
        ValueError: a file in the working folder would decide where a key is sent, or what is written where.
    """
    import wandb  # half a second, which only runs that log there should pay

    settings = wandb.setup().settings
    _check_settings(Path(wandb.Settings().settings_workspace), Path(settings.settings_system or ""), wandb.Settings().base_url)
    mode = wanted or settings.mode
    if mode not in ("online", "shared", "run"):
        return "offline" if mode == "dryrun" else mode
    hosts = {urlsplit(settings.base_url).netloc} | ({PUBLIC_HOST} if settings.base_url == wandb.Settings().base_url else set())
    missing = None if settings.api_key or _has_key(hosts) else "there is no key"
    if missing is None and not _answers(settings.base_url):
        missing = f"{settings.base_url} does not answer"
    if missing is not None:
        say_offline(missing)
    return "online" if missing is None else "offline"


def _check_settings(found: Path, own: Path, base_url: str) -> None:
    """Refuse a settings file in the working folder, which may be a stranger's: the user's own, or a variable, has to say the same."""
    known = {"base_url": base_url} | _entries(own)
    for name, value in _entries(found).items():
        if name not in HARMLESS and known.get(name) != value and f"WANDB_{name.upper()}" not in os.environ:
            raise ValueError(
                f"{found} sets {name}={value}, which could send your key elsewhere.\n"
                f"If it is yours, say WANDB_{name.upper()}={value} in the environment; else take the file away."
            )


def _entries(path: Path) -> dict[str, str]:
    """A settings file of W&B's, which takes one that it cannot read for none."""
    parser = ConfigParser(interpolation=None)
    try:
        parser.read(path)
    except (Error, OSError):
        return {}
    return dict(parser["default"]) if "default" in parser else {}


def _has_key(hosts: Iterable[str]) -> bool:
    """Whether the environment, or the netrc file for one of the hosts, holds a key."""
    if any(os.environ.get(variable) for variable in KEY_VARIABLES):
        return True
    try:
        entries = netrc(os.environ.get("NETRC") or Path.home() / ".netrc")
    except (OSError, NetrcParseError):
        return False
    return any(entry and entry[2] for entry in map(entries.authenticators, hosts))


def _answers(url: str, seconds: float = 2.0) -> bool:
    """Whether an HTTP server answers at all, through the proxy if there is one, within so many seconds, its name's look-up included."""
    answers: list[bool] = []

    def ask() -> None:
        try:
            urlopen(Request(url, method="HEAD"), timeout=seconds).close()
        except HTTPError:
            answers.append(True)
        except OSError:
            answers.append(False)
        else:
            answers.append(True)

    thread = Thread(target=ask, daemon=True)  # the look-up of a name has no timeout of its own
    thread.start()
    thread.join(seconds)
    return bool(answers) and answers[0]
