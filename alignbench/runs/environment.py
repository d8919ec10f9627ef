"""Where a run happens: versions, device, source revision."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path

from alignbench import __version__
from alignbench.files import package_file
from alignbench.record import EnvironmentInfo

PACKAGES = ("accelerate", "lpips", "numpy", "safetensors", "scikit-learn", "torch-fidelity", "torchvision")


def version_of(package: str) -> str | None:
    """Return the installed version of a distribution, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_revision() -> tuple[str | None, bool | None]:
    """Return (commit, dirty) of the checkout this package runs from, or (None, None)."""
    root = package_file("").resolve().parent
    if not (root / ".git").exists():
        return None, None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit, bool(_git(root, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None, None


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()


def device_name() -> str:
    """Return the name tables show: the GPU's, or `CPU`."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def describe() -> EnvironmentInfo:
    """Collect the environment section of a run record."""
    import torch

    commit, dirty = git_revision()
    return EnvironmentInfo(
        alignbench=__version__,
        git_commit=commit,
        git_dirty=dirty,
        torch=torch.__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        device=device_name(),
        threads=torch.get_num_threads(),
        packages={name: version for name in PACKAGES if (version := version_of(name))},
    )
