"""Networks of the official shapes with random weights, to time evaluators where the real ones cannot be had.

`python -m tests.e2e.random_networks OUT` writes about 6 GB: Inception, two CLIPs, HPSv2.1, a Mask2Former
in the hub's form, VGG-16's convolutions. `alignbench bench --protocol NAME --set assets.ASSET=OUT/FILE` reads
them. Numbers computed with them mean nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from alignbench.evaluators.geneval.mask2former import swin_s_config
from alignbench.nets import clip
from tests.helpers.inception_toys import save_random
from tests.helpers.lpips_trunks import random_trunk

CLIPS = {
    "clip-vit-l-14-openai": "ViT-L-14-quickgelu",
    "clip-vit-b-32-openai": "ViT-B-32-quickgelu",
    "hpsv2.1": "ViT-H-14",
}


def filled(build: Any, device: torch.device) -> nn.Module:
    """Build a network without drawing its own weights, and draw them on a device, which is faster."""
    with torch.device("meta"):
        module: nn.Module = build()
    module.to_empty(device=device)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.02)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    return module


def save_clip(path: Path, architecture: str, device: torch.device) -> None:
    import open_clip

    shape = clip.architecture_of(architecture)
    state = filled(lambda: open_clip.CLIP(**shape), device).state_dict()
    torch.save({name: value.cpu() for name, value in state.items()}, path)


def save_mask2former(folder: Path) -> None:
    import transformers

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network: Any = transformers.Mask2FormerForUniversalSegmentation(swin_s_config())
    network.save_pretrained(folder)


def main(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    save_random(out / "inception.pth")
    for asset, architecture in CLIPS.items():
        save_clip(out / f"{asset}.pt", architecture, device)
    save_mask2former(out / "mask2former-swin-small-hub")
    random_trunk("vgg", out / "vgg.pth")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
