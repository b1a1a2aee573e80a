"""Of what kind the values in a run's own files are, so that whoever reads them need not doubt them: the files may be a stranger's.

A kind is a type, a list with the kind of its entries, or a mapping of names to kinds. A name may be a pattern; one that ends in ``?``
may be absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import filter as matching
from types import UnionType
from typing import Any

Kind = type | UnionType | list[Any] | dict[str, Any]

NUMBER, WORDS = int | float, str | None
LARGEST = 2**63  # of whole numbers: others are no float, and no tensor holds them

ESTIMATE: Kind = {
    **{"quantity": str, "mean": NUMBER, "standard_error": NUMBER, "num_data": int, "seconds": NUMBER},
    **{"is_bound": bool, "bits_per_dimension": NUMBER | None, "effective": NUMBER | None},
}
COUNTS = dict.fromkeys(("train?", "val?", "test?", "dim?"), int)
TIMES = dict.fromkeys(("epochs?", "optimizer_steps?", "parameters?", "devices?"), int) | {"seconds?": NUMBER, "images_per_second?": NUMBER}
KINDS: dict[str, Kind] = {
    "results.json": {
        **dict.fromkeys(("val/*?", "test/*?", "study/*?"), NUMBER),
        **dict.fromkeys(("name?", "monitor?", "device?", "precision?"), str),
        **{"measure?": WORDS, "git_commit?": WORDS, "equations?": [str], "remarks?": [str], "versions?": {"*?": str}},
        **{"data?": COUNTS | {"kind?": str, "preparation?": [str]}},
        **TIMES,
    },
    "evaluation.json": {
        **{"evidence": [ESTIMATE], "baselines?": [ESTIMATE], "verdict?": WORDS, "warnings?": [str], "sentences?": [str]},
        **{"latent?": {"units?": {"active": int}}},
    },
    ".wandb.json": {"id": str, "step": int},
}


def require(value: Any, kind: Kind, name: str) -> None:
    """Refuse a value that is not of a kind.

    Raises:
        ValueError: as said; the message begins with the `name` of what does not fit.
    """
    if isinstance(kind, list) and isinstance(value, list):
        for i, entry in enumerate(value):
            require(entry, kind[0], f"{name}[{i}]")
    elif isinstance(kind, dict) and isinstance(value, dict) and all(isinstance(entry, str) for entry in value):
        _require_entries(value, kind, name)
    elif isinstance(kind, list | dict) or not isinstance(value, kind):
        raise ValueError(f"{name} is {str(value)[:50]!r}, of another kind than it has to be")


def _require_entries(value: Mapping[str, Any], kind: Mapping[str, Kind], name: str) -> None:
    for pattern, inner in kind.items():
        found = matching(value, pattern.removesuffix("?"))
        if not found and not pattern.endswith("?"):
            raise ValueError(f"{name} has no {pattern}")
        for entry in found:
            require(value[entry], inner, f"{name}: {entry}")


def whole_number(text: str) -> int:
    """A whole number of a JSON file.

    Raises:
        ValueError: it is larger than any that is written.
    """
    if abs(number := int(text)) >= LARGEST:
        raise ValueError(f"it holds a whole number of {len(text)} digits")
    return number
