"""The arithmetic around Mask2Former as mmdetection 2 does it: image in, detections out.

Images: resized with OpenCV's bilinear filter for bytes so that the shorter side is 800 and the longer at most
1333, padded with 128 to multiples of 32, normalised (`configs/mask2former`, test pipeline). Detections:
mmdet's `MaskFormerFusionHead.instance_postprocess`. transformers' own processing of both differs: it would
resize to 384 and threshold masks on a small grid.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from alignbench.evaluators.geneval.rules import Detection

SHORT_SIDE, LONG_SIDE = 800, 1333
DIVISOR = 32
PAD = 128
"""Level of the padding, all channels alike; before normalising, so it does not become 0."""
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
"""Of RGB bytes, over ImageNet."""
MAX_DETECTIONS = 100
"""Pairs of query and class that are kept (`max_per_image`)."""
MASK_EPSILON = 1e-6
"""Added to the pixels of a mask where its mean is taken."""
_FIXED_POINT = 2048
"""OpenCV's weights are whole numbers of this denominator."""


# --- image in -------------------------------------------------------------------------------------


def detector_size(height: int, width: int) -> tuple[int, int]:
    """Return (height, width) after resizing: shorter side 800 unless the longer one would exceed 1333."""
    scale = min(LONG_SIDE / max(height, width), SHORT_SIDE / min(height, width))
    return int(height * scale + 0.5), int(width * scale + 0.5)


def resize_bytes(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize [..., H, W] uint8 to (height, width) as OpenCV's `INTER_LINEAR` does, equal in every byte.

    Fixed point, no antialias.
    """
    height, width = images.shape[-2:]
    if (height, width) == size:
        return images
    pixels = images.int()
    if (height, width) == (2 * size[0], 2 * size[1]):  # OpenCV then takes the mean of 2×2 pixels
        pairs = pixels[..., 0::2, :] + pixels[..., 1::2, :]
        return ((pairs[..., 0::2] + pairs[..., 1::2] + 2) >> 2).to(torch.uint8)
    left, right, to_left, to_right = _weights(width, size[1], images.device, clamp=True)
    rows = pixels[..., left] * to_left + pixels[..., right] * to_right
    top, bottom, to_top, to_bottom = _weights(height, size[0], images.device, clamp=False)
    upper = (to_top[:, None] * (rows[..., top, :] >> 4)) >> 16
    lower = (to_bottom[:, None] * (rows[..., bottom, :] >> 4)) >> 16
    return ((upper + lower + 2) >> 2).to(torch.uint8)


def _weights(
    source: int, target: int, device: torch.device, *, clamp: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two neighbours of each target position and their weights.

    OpenCV moves columns outside the image onto its edge before weighing (`clamp`), rows after it; the sums
    round differently.
    """
    centres = ((torch.arange(target, dtype=torch.float64) + 0.5) * (1 / (target / source)) - 0.5).float()
    first = centres.floor()
    share = centres - first
    if clamp:
        share[(first < 0) | (first >= source - 1)] = 0
    near = first.long().clamp(0, source - 1)
    far = (first.long() + 1).clamp(0, source - 1)
    to_near, to_far = ((1 - share) * _FIXED_POINT).round().int(), (share * _FIXED_POINT).round().int()
    return near.to(device), far.to(device), to_near.to(device), to_far.to(device)


def prepare(images: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Make the network's input of [n, 3, H, W] uint8 RGB.

    Returns [n, 3, h, w] float32, sides multiples of 32; and (height, width) of the picture in its corner.
    """
    size = detector_size(*images.shape[-2:])
    below, beside = (-side % DIVISOR for side in size)
    padded = F.pad(resize_bytes(images, size), (0, beside, 0, below), value=PAD).float()
    mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (MEAN, STD))
    return (padded - mean) / std, size


# --- detections out -------------------------------------------------------------------------------


def instances(
    class_logits: Tensor,
    mask_logits: Tensor,
    *,
    padded: tuple[int, int],
    resized: tuple[int, int],
    original: tuple[int, int],
) -> list[Detection]:
    """Turn one image's queries, class logits [Q, C + 1] and mask logits [Q, h, w], into detections.

    The last class means no object. The best 100 pairs of query and class are kept. Mask logits are brought
    to the (height, width) of the padded input, cut to the resized picture in it, brought to the image's
    original size and only then thresholded at 0. The score is the class probability times the mean mask
    probability inside the mask; the box is the mask's, its end one past the last pixel.
    """
    scores = class_logits.softmax(dim=-1)[:, :-1]
    classes = scores.shape[1]
    best = scores.flatten().topk(min(MAX_DETECTIONS, scores.numel()))
    queries, pair = (best.indices // classes).unique(return_inverse=True)
    logits = F.interpolate(mask_logits[queries][:, None], padded, mode="bilinear", align_corners=False)
    logits = logits[:, :, : resized[0], : resized[1]]
    logits = F.interpolate(logits, original, mode="bilinear", align_corners=False)[:, 0]
    masks = logits > 0
    inside = (logits.sigmoid() * masks).sum(dim=(1, 2)) / (masks.sum(dim=(1, 2)) + MASK_EPSILON)
    products = (best.values * inside[pair]).tolist()
    boxes = tight_boxes(masks).tolist()
    kept = masks.cpu().numpy()
    labels = (best.indices % classes).tolist()
    return [
        Detection(label, score, tuple(boxes[row]), kept[row])
        for label, score, row in zip(labels, products, pair.tolist(), strict=True)
    ]


def tight_boxes(masks: Tensor) -> Tensor:
    """Return (left, top, right, bottom) of each of [n, H, W] bool masks, [n, 4] float32; 0 for an empty one.

    Right and bottom are one past the last pixel.
    """
    edges = []
    for occupied in (masks.any(dim=1), masks.any(dim=2)):  # columns, rows
        first = occupied.int().argmax(dim=1)
        last = occupied.shape[1] - occupied.flip(1).int().argmax(dim=1)
        edges += [first, last.where(occupied.any(dim=1), 0)]
    left, right, top, bottom = edges
    return torch.stack([left, top, right, bottom], dim=1).float()
