"""DINOv2 (arXiv:2304.07193) as dgm-eval runs it for FD-DINOv2, from the hub's folders or Meta's own files.

The networks are transformers'. What is done here is what differs between the two releases: dgm-eval takes
Meta's program, which stretches the position embeddings of 37×37 patches to 16×16 with the scale 16.1/37, not
antialiased; transformers stretches them with 16/37. Here they are stretched once, Meta's way, when a model is
loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from alignbench.errors import UserError
from alignbench.nets.precision import full_precision

SIDE = 224
"""Of the pictures that dgm-eval gives it."""
PATCH = 14
HEAD = 64
"""Width of an attention head in all of Meta's releases."""
OFFSET = 0.1
"""Of the stretched number of patches; a remnant of DINO's program that Meta keeps for its results' sake."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's pixels in [0, 1]."""
_NAMES = {
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.": "embeddings.patch_embeddings.projection.",
    "norm.": "layernorm.",
    "attn.proj.": "attention.output.dense.",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
}
"""{Meta's name or its beginning: the hub's}; inside a block the rest is called alike."""


class Dinov2:
    """The frozen network: pictures in, the class token after the last normalisation out."""

    def __init__(self, network: Any, device: torch.device) -> None:
        """Take a `transformers.Dinov2Model` and adapt it to pictures of 224 px."""
        stretched = stretch(network.embeddings.position_embeddings.detach())
        network.embeddings.position_embeddings = torch.nn.Parameter(stretched)  # of just as many patches
        self._network = network.to(device).eval().requires_grad_(False)
        self._device = device
        self.width = int(network.config.hidden_size)

    def to(self, device: torch.device) -> None:
        self._network, self._device = self._network.to(device), device

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """[n, 3, H, W] uint8 → [n, width] float32 on the network's device; TF32 is off."""
        with full_precision():
            states = self._network(pixel_values=pictures(images).to(self._device)).last_hidden_state
        result: Tensor = states[:, 0]
        return result


def pictures(images: Tensor) -> Tensor:
    """[n, 3, H, W] uint8 → [n, 3, 224, 224] float32: PIL's bicubic filter whatever the aspect, normalised."""
    arrays = images.cpu().permute(0, 2, 3, 1).contiguous().numpy()
    resized = [Image.fromarray(one).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for one in arrays]
    scaled = torch.from_numpy(np.stack([np.asarray(one) for one in resized])).permute(0, 3, 1, 2) / 255
    return (scaled - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def stretch(embeddings: Tensor) -> Tensor:
    """[1, 1 + M², D] of a class token and M×M patches → [1, 1 + 16², D], as Meta's program does."""
    count, side = SIDE // PATCH, round((embeddings.shape[1] - 1) ** 0.5)
    if side == count:
        return embeddings
    grid = embeddings[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    # The scale decides where is sampled; the size alone would give other values.
    grid = F.interpolate(grid, scale_factor=(count + OFFSET) / side, mode="bicubic")
    return torch.cat([embeddings[:, :1], grid.flatten(start_dim=2).transpose(1, 2)], dim=1)


def load(path: Path, device: torch.device) -> Dinov2:
    """Read a folder in the hub's form, or Meta's `dinov2_vit*14_pretrain.pth`, alone or in a folder.

    Raises:
        UserError: transformers is missing, or the files are no DINOv2 with patches of 14 px and no registers.
    """
    try:
        from transformers import Dinov2Model
    except ImportError as error:
        fix = "pip install 'alignbench[rewards]'"
        raise UserError(f"DINOv2 needs the package transformers: {error}", fix=fix) from error
    library: Any = Dinov2Model
    if not (path / "config.json").is_file():
        path = next(path.glob("dinov2_*_pretrain.pth"), path)
    try:
        source: dict[str, Any] = {"pretrained_model_name_or_path": path}
        if path.is_file():
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            source = {"pretrained_model_name_or_path": None, "config": config_of(state)}
            source["state_dict"] = dict(renamed(state))
        network, report = library.from_pretrained(
            **source, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:  # damaged files make the readers fail in nearly any way
        lines = str(error).strip().splitlines()
        raise _refusal(path, lines[0] if lines else type(error).__name__) from error
    if lacking := sorted(report["missing_keys"] | report["unexpected_keys"]):
        raise _refusal(path, f"{lacking[0]} is missing or not part of it ({len(lacking)} such names)")
    positions = network.embeddings.position_embeddings
    if network.config.patch_size != PATCH or positions is None:
        raise _refusal(path, f"patches are {network.config.patch_size} px wide")
    return Dinov2(network, device)


def config_of(state: dict[str, Tensor]) -> Any:
    """Return the configuration of one of Meta's files, read off its shapes; KeyError: it is none."""
    import transformers

    library: Any = transformers  # its type hints leave these arguments out
    width, _, patch, _ = state["patch_embed.proj.weight"].shape
    return library.Dinov2Config(
        hidden_size=width,
        num_hidden_layers=sum(name.endswith(".ls2.gamma") for name in state),
        num_attention_heads=width // HEAD,
        image_size=patch * round((state["pos_embed"].shape[1] - 1) ** 0.5),
        patch_size=patch,
    )


def renamed(state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of one of Meta's files under the names of the hub's."""
    for name, value in state.items():
        if not name.startswith("blocks."):
            yield _hubs(name), value
            continue
        _, number, rest = name.split(".", 2)
        block = f"encoder.layer.{number}."
        if not rest.startswith("attn.qkv."):
            yield block + _hubs(rest), value
            continue
        for part, piece in zip(("query", "key", "value"), value.chunk(3), strict=True):
            yield f"{block}attention.attention.{part}.{rest.removeprefix('attn.qkv.')}", piece


def _hubs(name: str) -> str:
    start = next((start for start in _NAMES if name.startswith(start)), "")
    return _NAMES.get(start, "") + name.removeprefix(start)


def _refusal(path: Path, reason: str) -> UserError:
    return UserError(f"{path} holds no DINOv2: {reason}", fix="alignbench fetch dinov2-large (or -base)")
