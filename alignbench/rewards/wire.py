"""Score requests and scores as bytes: NumPy's .npz, never pickle; texts and metadata as JSON inside it.

Images arrive exactly as they were sent: as bytes where every value is a multiple of 1/255, or as float32.
"""

from __future__ import annotations

import io
import json
import zipfile
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alignbench import api
from alignbench.files import parse_json

MAX_REQUEST = 2**31
"""Bytes that a request may unpack to."""


class Malformed(ValueError):
    """Bytes that are not what they should be."""


def pack_images(images: Tensor) -> np.ndarray[Any, Any]:
    """[N, 3, H, W] float32 → uint8 if nothing is lost by that, else float32."""
    images = images.detach().cpu().contiguous()
    coarse = (images * 255).round().clamp(0, 255).to(torch.uint8)
    return coarse.numpy() if torch.equal(_unpack(coarse), images) else images.numpy()


def unpack_images(array: np.ndarray[Any, Any]) -> Tensor:
    """Reverse `pack_images`."""
    if array.ndim != 4 or array.dtype not in (np.uint8, np.float32):
        raise Malformed(f"images are {array.dtype} {list(array.shape)}")
    return _unpack(torch.from_numpy(array.copy()))


def _unpack(images: Tensor) -> Tensor:
    return images.float() / 255 if images.dtype == torch.uint8 else images


def dump_request(request: api.ScoreRequest) -> bytes:
    """Raises TypeError if the metadata is no JSON."""
    words = {
        "texts": list(request.texts),
        "metadata": {name: list(values) for name, values in request.metadata.items()},
    }
    arrays = {"images": pack_images(request.images), "group": request.group.cpu().numpy()}
    if request.labels is not None:
        arrays["labels"] = request.labels.cpu().numpy()
    if request.reference is not None:
        arrays["reference"] = pack_images(request.reference)
    return _dump({**arrays, "json": np.frombuffer(json.dumps(words).encode(), dtype=np.uint8)})


def load_request(data: bytes) -> api.ScoreRequest:
    """Raises Malformed."""
    arrays = _load(data, MAX_REQUEST)
    try:
        words = parse_json(arrays["json"].tobytes())
        return api.ScoreRequest(
            images=unpack_images(arrays["images"]),
            group=_integers(arrays["group"]),
            labels=_integers(arrays["labels"]) if "labels" in arrays else None,
            texts=tuple(str(text) for text in words["texts"]),
            reference=unpack_images(arrays["reference"]) if "reference" in arrays else None,
            metadata=dict(words["metadata"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise Malformed(f"not a score request: {type(error).__name__}: {error}") from error


def dump_scores(scores: api.Scores) -> bytes:
    return _dump(
        {"values": scores.values.detach().float().cpu().numpy(), "valid": scores.valid.cpu().numpy()}
    )


def load_scores(data: bytes, count: int) -> api.Scores:
    """Return `count` scores on the CPU; raises Malformed."""
    arrays = _load(data, answer_bytes(count))
    if set(arrays) != {"values", "valid"}:
        raise Malformed(f"not scores: it holds {', '.join(sorted(arrays)) or 'nothing'}")
    values, valid = arrays["values"], arrays["valid"]
    if (
        (values.shape, valid.shape) != ((count,), (count,))
        or values.dtype != np.float32
        or valid.dtype != bool
    ):
        raise Malformed(f"{values.dtype} {values.shape} and {valid.dtype} {valid.shape} for {count} images")
    return api.Scores(torch.from_numpy(values.copy()), torch.from_numpy(valid.copy()))


def dump_features(features: Tensor) -> bytes:
    return _dump({"features": features.detach().cpu().numpy()})


def load_features(data: bytes, count: int) -> Tensor:
    """Return [count, D] float32 or float64 features on the CPU; raises Malformed."""
    features = _load(data, feature_bytes(count)).get("features")
    if features is None or features.ndim != 2 or len(features) != count:
        raise Malformed(f"no features of {count} images")
    if features.dtype not in (np.float32, np.float64):
        raise Malformed(f"features are {features.dtype}")
    return torch.from_numpy(features.copy())


def _integers(array: np.ndarray[Any, Any]) -> Tensor:
    if array.ndim != 1 or array.dtype != np.int64:
        raise Malformed(f"{array.dtype} {list(array.shape)} where [N] int64 belongs")
    return torch.from_numpy(array.copy())


def _dump(arrays: dict[str, Any]) -> bytes:
    """Arrays of numbers; before NumPy 2.2 `allow_pickle=False` would be stored as one more."""
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def answer_bytes(count: int) -> int:
    """Largest answer with `count` scores: five bytes each, headers, and whatever another server packs in."""
    return 64 * count + (1 << 16)


def feature_bytes(count: int) -> int:
    """Largest answer with features: 16384 numbers of each of `count` images."""
    return 2**17 * count + (1 << 16)


def _load(data: bytes, limit: int) -> dict[str, np.ndarray[Any, Any]]:
    """Read arrays of at most `limit` bytes: a small archive can unpack to a thousand times its size."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as members:
            unpacked = sum(member.file_size for member in members.infolist())
        if unpacked > limit:
            raise ValueError(f"it unpacks to {unpacked} bytes, more than {limit}")
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # zipfile, zlib and NumPy raise a dozen kinds on damaged input
        raise Malformed(f"not an .npz archive: {type(error).__name__}: {error}") from error
