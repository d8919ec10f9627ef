"""GenEval's detector: Mask2Former with a Swin-S backbone, without mmdetection.

`build_official` reads the checkpoint that GenEval names into transformers' architecture; `build_hub` reads
the hub's own weights, which come from another training run. Both treat images and outputs as mmdetection
does.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from alignbench.errors import UserError
from alignbench.evaluators.geneval.detectors import CLASS_NAMES
from alignbench.evaluators.geneval.mask2former_arrays import instances, prepare
from alignbench.evaluators.geneval.mask2former_keys import convert
from alignbench.evaluators.geneval.rules import Detection
from alignbench.files import digest_of
from alignbench.hub.verify import AssetFile
from alignbench.nets.precision import full_precision
from alignbench.registry.schema import Scalar

VERSION = 1
"""Of this file's arithmetic; part of the identity."""
OFFICIAL = "mask2former-swin-s-mmdet"
HUB = "mask2former-swin-small-hub"


class Mask2FormerDetector:
    """Finds COCO objects and their masks in float32; a `detectors.Detector`.

    The network is a `transformers.Mask2FormerForUniversalSegmentation` for as many classes as there are
    names.
    """

    def __init__(
        self, network: Any, *, identity: str, batch: int, device: torch.device, class_names: Sequence[str]
    ) -> None:
        classes = network.config.num_labels
        if classes != len(class_names):
            raise UserError(f"the detector knows {classes} classes, not {len(class_names)}")
        self.identity = digest_of({"detector": "mask2former", "version": VERSION, "weights": identity})
        self.class_names = tuple(class_names)
        self.batch = batch
        self._device = device
        self._network = network.to(device=device, dtype=torch.float32).eval().requires_grad_(False)

    @torch.no_grad()
    def detect(self, images: Tensor, ids: Sequence[int]) -> list[list[Detection]]:
        """Return the best 100 pairs of object and class for each image, at any score."""
        pixels, resized = prepare(images.to(self._device))
        with full_precision():
            output = self._network(pixel_values=pixels)
        padded = (pixels.shape[2], pixels.shape[3])
        original = (images.shape[2], images.shape[3])
        return [
            instances(classes, masks, padded=padded, resized=resized, original=original)
            for classes, masks in zip(output.class_queries_logits, output.masks_queries_logits, strict=True)
        ]


def build_official(
    *, options: Mapping[str, Scalar], assets: Mapping[str, AssetFile], device: torch.device
) -> Mask2FormerDetector:
    """Read mmdetection's checkpoint.

    Raises:
        UserError: a file that is not this network's.
    """
    from transformers import Mask2FormerForUniversalSegmentation

    file = assets[OFFICIAL]
    with torch.random.fork_rng(devices=[]):  # building draws weights that are then replaced
        network = Mask2FormerForUniversalSegmentation(swin_s_config())
    network.load_state_dict(convert(read_checkpoint(file), network.state_dict()))
    return _detector(network, file, options, device)


def build_hub(
    *, options: Mapping[str, Scalar], assets: Mapping[str, AssetFile], device: torch.device
) -> Mask2FormerDetector:
    """Read a folder in the hub's form; its label file is not looked at, the order of COCO's classes is."""
    from transformers import Mask2FormerForUniversalSegmentation

    folder = assets[HUB]
    with torch.random.fork_rng(devices=[]):
        network: Any = Mask2FormerForUniversalSegmentation.from_pretrained(
            folder.path, dtype=torch.float32, local_files_only=True
        )
    return _detector(network, folder, options, device)


def _detector(
    network: Any, file: AssetFile, options: Mapping[str, Scalar], device: torch.device
) -> Mask2FormerDetector:
    return Mask2FormerDetector(
        network, identity=file.sha256, batch=int(options["batch"]), device=device, class_names=CLASS_NAMES
    )


def swin_s_config() -> Any:
    """Return the configuration of `mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco` as transformers says it.

    Heads, levels, layers and widths that are not named are transformers' defaults, which agree with it.
    """
    import transformers

    library: Any = transformers  # its type hints leave these arguments out
    backbone = library.SwinConfig(
        embed_dim=96,
        depths=[2, 2, 18, 2],
        num_heads=[3, 6, 12, 24],
        window_size=7,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    return library.Mask2FormerConfig(backbone_config=backbone, num_labels=len(CLASS_NAMES), num_queries=100)


def read_checkpoint(file: AssetFile) -> Mapping[str, Tensor]:
    """Return the `state_dict` of an mmdetection checkpoint; nothing in the file is executed.

    Raises:
        UserError: a file that cannot be read so.
    """
    try:
        content = torch.load(file.path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{file.path} cannot be read as a checkpoint: {reason}", fix=f"alignbench fetch {file.name}"
        ) from error
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(
            f"{file.path} holds no state_dict of tensors", fix="give mmdetection 2's checkpoint as released"
        )
    return state
