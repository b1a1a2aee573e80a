"""Let torchmetrics be imported without SciPy's signal processing, which would take a sixth of the time of every start.

torchmetrics, and with it lightning, imports `scipy.signal` only to see whether it has an attribute that SciPy has taken away. A stand-in
has that attribute, and becomes the module itself as soon as anybody asks for anything else.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any, final

_NAME = "scipy.signal"


@final
class _Later(ModuleType):
    """The module, which is imported when somebody looks into it."""

    hamming = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in ("__path__", "__all__"):  # `inspect` asks every module for its `__file__`
            raise AttributeError(name)
        if sys.modules.get(_NAME) is self:
            del sys.modules[_NAME]
        return getattr(import_module(_NAME), name)


sys.modules.setdefault(_NAME, _Later(_NAME))
