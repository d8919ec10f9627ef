"""Score requests: cutting them, checking what a reward was given, the common part of distances."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from alignbench import api

RANGE = (-1.0, 2.0)
"""A decoder may leave [0, 1] by as much as its width. Bytes leave it by more, and so do pictures in [-1, 1]
as soon as one of their pixels is black."""


def split(request: api.ScoreRequest, size: int) -> Iterator[api.ScoreRequest]:
    """Cut into consecutive pieces of at most `size` images, each with everything that belongs to it."""
    for start in range(0, len(request.images), size):
        rows = slice(start, start + size)
        yield api.ScoreRequest(
            images=request.images[rows],
            group=request.group[rows],
            labels=None if request.labels is None else request.labels[rows],
            texts=request.texts[rows],
            reference=None if request.reference is None else request.reference[rows],
            metadata={name: values[rows] for name, values in request.metadata.items()},
        )


def move(request: api.ScoreRequest, device: torch.device) -> api.ScoreRequest:
    """Return the request with its tensors on a device."""
    tensors: dict[str, Any] = {
        key: value.to(device) for key, value in vars(request).items() if isinstance(value, Tensor)
    }
    return replace(request, **tensors)


def check_images(name: str, what: str, images: Tensor) -> None:
    """Raise ValueError, naming the reward, unless images are [N, 3, H, W] float32, roughly within [0, 1]."""
    if images.dim() != 4 or images.shape[1] != 3:
        raise ValueError(f"reward {name}: {what} must be [N, 3, H, W], not {list(images.shape)}")
    if images.dtype != torch.float32:
        raise ValueError(f"reward {name}: {what} must be float32 in [0, 1], not {images.dtype}")
    if images.numel():
        low, high = (float(edge) for edge in images.detach().aminmax())
        if not (RANGE[0] < low and high < RANGE[1]):
            raise ValueError(
                f"reward {name}: {what} must be in [0, 1] (0 black, 1 white); these span {low:g} … {high:g}"
            )


def check(name: str, request: api.ScoreRequest) -> None:
    """Raise ValueError, naming the reward, unless a request's parts fit each other and the interface."""
    check_images(name, "images", request.images)
    count = len(request.images)
    if request.reference is not None:
        check_images(name, "reference images", request.reference)
        if request.reference.shape != request.images.shape:
            raise ValueError(f"reward {name}: images and reference images differ in shape")
    sizes = {"group": len(request.group), **{key: len(part) for key, part in request.metadata.items()}}
    if request.labels is not None:
        sizes["labels"] = len(request.labels)
    if request.texts:
        sizes["texts"] = len(request.texts)
    wrong = [f"{size} {key}" for key, size in sizes.items() if size != count]
    if wrong:
        raise ValueError(f"reward {name}: {count} images came with {', '.join(wrong)}")


def check_scores(scores: object, count: int) -> None:
    """Raise TypeError or ValueError unless these are `api.Scores` of [count] numbers and [count] bool."""
    if not isinstance(scores, api.Scores):
        raise TypeError(f"it returned {type(scores).__name__}, not Scores")
    check_values(scores.values, count)
    valid = scores.valid
    if not isinstance(valid, Tensor) or valid.dtype != torch.bool or valid.shape != (count,):
        raise ValueError(f"`valid` is not [{count}] bool")


def check_values(values: object, count: int) -> None:
    """Raise TypeError or ValueError unless these are [count] floating-point numbers."""
    if not isinstance(values, Tensor) or not values.is_floating_point():
        kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"it returned {kind}, not a tensor of floating-point numbers")
    if values.shape != (count,):
        raise ValueError(f"it returned {list(values.shape)} for {count} images, not [{count}]")


def check_features(features: object, count: int, width: int | None = None) -> None:
    """Raise TypeError or ValueError unless these are [count, width] floating-point numbers."""
    if not isinstance(features, Tensor) or not features.is_floating_point():
        raise TypeError("its features are no tensor of floating-point numbers")
    if features.shape != (count, features.shape[-1] if width is None else width):
        raise ValueError(f"its features are {list(features.shape)} for {count} images, not [{count}, D]")


class FromReference(api.Distance):
    """Gives distances the call of a reward: each image against its own reference image."""

    def score(self, request: api.ScoreRequest) -> api.Scores:
        """Raw distances in [-1, 1] units, smaller is better; the request must have reference images."""
        assert request.reference is not None, "a distance needs reference images"
        prepared = self.prepare(2 * request.reference - 1)
        return all_valid(self.distance(2 * request.images - 1, prepared, repeats=1))


def all_valid(values: Tensor) -> api.Scores:
    """Scores none of which failed."""
    return api.Scores(values, torch.ones_like(values, dtype=torch.bool))
