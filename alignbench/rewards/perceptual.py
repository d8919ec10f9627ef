"""Distances between the features of a frozen network as rewards: LPIPS, and its small kin for the digits."""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path

import torch

from alignbench.errors import UserError
from alignbench.files import file_sha256
from alignbench.nets import digits, lpips
from alignbench.rewards.requests import FromReference

TRUNKS: dict[lpips.Net, str] = {"vgg": "vgg16-397923af.pth", "alex": "alexnet-owt-7be5be79.pth"}
"""torchvision's ImageNet weights; the digits before the suffix begin the file's sha256."""
TRUNK_URL = "https://download.pytorch.org/models/"


class PerceptualDistance(lpips.FeatureDistance, FromReference):
    """A feature distance with the call of a reward."""


def _build_lpips(net: lpips.Net, device: torch.device) -> PerceptualDistance:
    trunk = lpips.load_trunk(net, require_trunk(TRUNKS[net])).to(device)
    return PerceptualDistance(trunk, [head.to(device) for head in lpips.heads(net)], module=trunk)


build_lpips_vgg, build_lpips_alex = partial(_build_lpips, "vgg"), partial(_build_lpips, "alex")


def build_digits(device: torch.device) -> PerceptualDistance:
    """The same arithmetic on `digits-features-b`, with a weight of 1 for every channel."""
    net = digits.load("digits-features-b", device)
    return PerceptualDistance(net.features, module=net)


def require_trunk(name: str) -> Path:
    """Return where a trunk lies, after comparing its sha256 with the start that its name carries.

    Nothing is downloaded: hundreds of megabytes in the middle of a run should be nobody's surprise, and
    torchvision itself never looks at a file that is already there.

    Raises:
        UserError: the file is missing or damaged.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    fix = f"curl --create-dirs -fL -o {shlex.quote(str(path))} {TRUNK_URL}{name}"
    if not path.is_file():
        raise UserError(f"LPIPS needs {path}, which is not there", fix=fix)
    digest = file_sha256(path)
    wanted = path.stem.rpartition("-")[2]
    if not digest.startswith(wanted):
        size = path.stat().st_size
        raise UserError(f"{path} is damaged: {size:,} bytes, sha256 {digest[:8]}…, not {wanted}…", fix=fix)
    return path
