"""Where Hydra looks for plugins: it takes them from this package only, in which every distribution may put some."""

from lowerbound.launcher import LocalLauncher
from lowerbound.slurm import SlurmLauncher
from lowerbound.sweepers import OptunaSweeper

__all__ = ["LocalLauncher", "OptunaSweeper", "SlurmLauncher"]
