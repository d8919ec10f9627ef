"""Distances between the features of a frozen network as rewards: LPIPS, and its small kin for the digits."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from alignbench.errors import UserError
from alignbench.hub.locate import locate_asset
from alignbench.hub.verify import AssetFile, verify_asset
from alignbench.nets import digits, lpips
from alignbench.registry.lookup import Registry
from alignbench.rewards.requests import FromReference

TRUNKS: dict[lpips.Net, str] = {"vgg": "lpips-vgg16-trunk", "alex": "lpips-alexnet-trunk"}
"""Assets: torchvision's ImageNet weights, whose file names carry the first digits of their sha256."""


class PerceptualDistance(lpips.FeatureDistance, FromReference):
    """A feature distance with the call of a reward."""


def _build_lpips(net: lpips.Net, device: torch.device, *, path: str = "") -> PerceptualDistance:
    trunk = lpips.load_trunk(net, require_trunk(TRUNKS[net], path)).to(device)
    return PerceptualDistance(trunk, [head.to(device) for head in lpips.heads(net)], module=trunk)


build_lpips_vgg, build_lpips_alex = partial(_build_lpips, "vgg"), partial(_build_lpips, "alex")


def build_digits(device: torch.device) -> PerceptualDistance:
    """The same arithmetic on `digits-features-b`, with a weight of 1 for every channel."""
    net = digits.load("digits-features-b", device)
    return PerceptualDistance(net.features, module=net)


def require_trunk(asset: str, path: str = "") -> Path:
    """Return where a trunk lies; see `require_weights`."""
    return require_weights(asset, path).path


def require_weights(asset: str, path: str = "") -> AssetFile:
    """Return a network's file, after comparing its sha256 with its card's and the start in its name.

    A file that the user names, `path`, is taken as it is.

    Nothing is downloaded: hundreds of megabytes in the middle of a run should be nobody's surprise, and
    torchvision itself never looks at a file that is already there.

    Raises:
        UserError: the file is missing or damaged.
    """
    file = verify_asset(locate_asset(asset, Registry.default().asset(asset), path))
    named = file.path.is_file()  # a folder in the hub's form has no digest in its name
    if named and not path and not file.sha256.startswith(file.path.stem.rpartition("-")[2]):
        raise UserError(
            f"{file.path} is damaged: its sha256 begins with {file.sha256[:8]}",
            fix=f"delete it, then: alignbench fetch {asset}",
        )
    return file
