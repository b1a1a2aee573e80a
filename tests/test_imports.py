"""What stands in until lightning is imported: two operators exactly where torchvision could not load its own, and scipy.signal."""

import subprocess
import sys

import pytest


@pytest.mark.process
@pytest.mark.parametrize("first", ["lowerbound", "torchvision.extension"])
def test_the_mend_is_made_where_the_operators_did_not_load_and_only_there(first: str) -> None:
    program = f"""
try:
    import {first}  # what torchvision does by itself, or what it does after us
except RuntimeError as error:
    assert "torchvision::nms" in str(error)
import sys
import lowerbound._torchvision as mend
import torchvision
assert "torchvision" in sys.modules
assert (mend._LIBRARY is None) == torchvision.extension._has_ops()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


@pytest.mark.process
def test_nothing_is_declared_on_a_healthy_install() -> None:
    program = """
import torch
torch.ops.load_library = lambda path: None
import lowerbound._torchvision as mend
assert mend._LIBRARY is None
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


@pytest.mark.process
def test_scipy_s_signal_processing_is_there_for_whoever_asks() -> None:
    program = """
import sys
import lowerbound.run
assert not any(name.startswith("scipy.signal.") for name in sys.modules), "nobody here does"
import scipy.signal
assert scipy.signal.convolve([1, 2], [3]).tolist() == [3, 6]
from scipy.signal import windows
assert windows is sys.modules["scipy.signal"].windows is scipy.signal.windows
assert "convolve" in dir(sys.modules["scipy.signal"])
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
