"""torchvision's Inception v3 with its ImageNet weights: not the network of FID, which has other weights."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from alignbench.errors import UserError
from alignbench.nets.precision import full_precision

SIDE = 299


def load(path: Path) -> nn.Module:
    """Return the network without its classifier, frozen, in evaluation mode.

    Raises:
        UserError: the file holds no weights of this network.
    """
    from torchvision.models import inception_v3  # heavy

    with torch.device("meta"):  # nothing is drawn
        net: nn.Module = inception_v3(weights=None, init_weights=False, transform_input=False)
    try:
        net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), assign=True)
    except Exception as error:  # unpicklers raise nearly anything on what is no such file
        raise UserError(
            f"{path} holds no weights of torchvision's Inception v3: {str(error).splitlines()[0]}",
            fix="alignbench fetch inception-v3-torchvision",
        ) from error
    net.fc = nn.Identity()
    return net.eval().requires_grad_(False)


def features(net: nn.Module, images: Tensor) -> Tensor:
    """Look at images as the program of arXiv:2603.23086 does.

    They are resized to 299 px, bilinear with antialiasing, aspect not kept. The normalisation by ImageNet's
    statistics and the network's own `transform_input` together map 0 … 1 to -1 … 1.

    Args:
        images: [N, 3, H, W] float32, 0 … 1, on the network's device.

    Returns:
        [N, 2048] float32, pooled.
    """
    resized = F.interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True)
    with full_precision():
        found: Tensor = net(2 * resized - 1)
    return found
