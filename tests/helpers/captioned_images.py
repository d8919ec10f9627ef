"""Made-up captioned images in every form they may lie in."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 50, 220)}
SHAPES = ("circle", "square")


def pixels_of(colour: str, shape: str, number: int, size: int = 16) -> np.ndarray:
    """One coloured thing somewhere on a dark ground, [size, size, 3] uint8."""
    places = np.random.default_rng(number).integers(size // 4, size // 2 + 1, 2)
    across, down = np.meshgrid(np.arange(size), np.arange(size))
    far = np.stack([abs(across - places[0]), abs(down - places[1])])
    inside = (np.hypot(*far) if shape == "circle" else far.max(axis=0)) <= size / 5
    image = np.full((size, size, 3), 20, np.uint8)
    image[inside] = COLOURS[colour]
    return image


def encoded(image: np.ndarray, kind: str = "png") -> bytes:
    """Encode pixels."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def scenes(count: int) -> list[tuple[np.ndarray, str]]:
    """Pictures with captions; any two neighbours differ."""
    colours = list(COLOURS)
    names = [(colours[number % 3], SHAPES[number // 3 % 2]) for number in range(count)]
    return [(pixels_of(*name, number), f"a photo of a {' '.join(name)}") for number, name in enumerate(names)]


def write_folder(root: Path, count: int) -> Path:
    """Write `000.png` with `000.txt` and so on."""
    root.mkdir(parents=True, exist_ok=True)
    for number, (image, caption) in enumerate(scenes(count)):
        (root / f"{number:03}.png").write_bytes(encoded(image))
        (root / f"{number:03}.txt").write_text(caption)
    return root


def write_tar(path: Path, files: Mapping[str, bytes]) -> Path:
    """Write an uncompressed shard."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def shard_files(count: int, start: int = 0) -> dict[str, bytes]:
    """Files of a shard as LAION-COCO's are: picture, text and facts of each sample."""
    files: dict[str, bytes] = {}
    for number, (image, caption) in enumerate(scenes(start + count)[start:], start=start):
        files[f"{number:09}.jpg"] = encoded(image, "jpeg")
        files[f"{number:09}.json"] = json.dumps({"caption": caption, "status": "success"}).encode()
        files[f"{number:09}.txt"] = caption.encode()
    return files
