"""Let torchvision be imported beside a torch that its compiled operators do not fit.

torchvision built for CUDA beside a CPU build of torch cannot load its operators. It goes on without them, except that
its import describes two of them to torch (`nms` and `qnms`), which fails because they do not exist; and with it fails
every library that imports torchvision, such as torchmetrics and lightning. Declared, without an implementation, they
are as unusable as before and the import succeeds. Nothing happens where the operators load.
"""

from __future__ import annotations

import sys
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, FileFinder
from importlib.util import find_spec

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def _operators_load() -> bool:
    """Whether torchvision's compiled operators load, tried as torchvision itself does, and hence at no extra cost."""
    package = find_spec("torchvision")
    if "torchvision" in sys.modules or package is None or hasattr(torch.ops.torchvision, "nms"):
        return True
    for folder in package.submodule_search_locations or ():
        extension = FileFinder(folder, (ExtensionFileLoader, EXTENSION_SUFFIXES)).find_spec("_C")
        if extension is not None and extension.origin is not None:
            try:
                torch.ops.load_library(extension.origin)
            except OSError:
                return False
            return True
    return False


def _declare_operators() -> torch.library.Library:
    """Declare the two operators that torchvision's import describes; they live as long as the object returned."""
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(name + _SCHEMA)
    return library


_LIBRARY = None if _operators_load() else _declare_operators()
