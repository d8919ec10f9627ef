"""Random trunks for LPIPS; `tests.nets.real_trunks` fetches the real ones."""

from __future__ import annotations

from pathlib import Path

import torch

from alignbench.nets import lpips


def random_trunk(net: lpips.Net, path: Path) -> Path:
    """Write random weights of the form of torchvision's file, convolutions only."""
    import torchvision.models

    with torch.device("meta"):
        shapes = getattr(torchvision.models, lpips.ARCHITECTURES[net])(weights=None).features.state_dict()
    numbers = torch.Generator().manual_seed(0)
    state = {}
    for key, value in shapes.items():
        spread = (2 / max(1, value[0].numel())) ** 0.5 if value.dim() > 1 else 0.1
        state[f"features.{key}"] = spread * torch.randn(value.shape, generator=numbers)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    return path
