"""What stands in until lightning is imported: two operators exactly where torchvision could not load its own, and scipy.signal."""

import subprocess
import sys

import pytest

MENDED = """
import lowerbound._torchvision as mend
import torchvision
assert (mend._LIBRARY is None) == torchvision.extension._has_ops(), "made where the operators did not load, and only there"
"""


@pytest.mark.process
def test_the_mend_is_made_after_torchvision_has_failed_by_itself_too() -> None:
    program = f"""
try:
    import torchvision.extension
except RuntimeError as error:
    assert "torchvision::nms" in str(error)
{MENDED}
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
def test_what_is_imported_later_is_mended_or_there_for_whoever_asks() -> None:
    program = f"""
import sys
import lowerbound.run
{MENDED}
assert not any(name.startswith("scipy.signal.") for name in sys.modules), "nobody here does"
import scipy.signal
assert scipy.signal.convolve([1, 2], [3]).tolist() == [3, 6]
from scipy.signal import windows
assert windows is sys.modules["scipy.signal"].windows is scipy.signal.windows
assert "convolve" in dir(sys.modules["scipy.signal"])
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
