"""Text features on disk: a caption is encoded once, whatever run or process needs it next.

One small file for each encoder and caption, written whole or not at all, so that any number of processes can
share a folder. It begins with a hash of the rest: an entry that is damaged is as good as none.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor

from alignbench.api import TextEncoder, TextFeatures
from alignbench.files import write_atomic

HASH_BYTES = 16


class CachedText:
    """A text encoder that remembers; implements `api.TextEncoder`.

    What is remembered is returned bit for bit. A folder that cannot be written costs time, not the run. All
    encoders share it; their entries are kept apart by `identity`.
    """

    def __init__(self, encoder: TextEncoder, folder: Path, *, device: torch.device) -> None:
        self.encoder = encoder
        self.identity = encoder.identity
        self._folder = folder / encoder.identity[:32]
        self._device = device

    def encode(self, texts: Sequence[str]) -> TextFeatures:
        unique = dict.fromkeys(texts)
        entries = {text: entry for text in unique if (entry := self._read(text)) is not None}
        absent = [text for text in unique if text not in entries]
        if absent:
            fresh = self.encoder.encode(absent)
            for row, text in enumerate(absent):
                entries[text] = fresh.features[row][fresh.mask[row]].cpu(), fresh.mask.shape[1]
                self._write(text, *entries[text])
        return left_padded([entries[text] for text in texts], tuple(texts), self._device)

    def path(self, text: str) -> Path:
        """Where a caption's features are, or would be."""
        name = hashlib.blake2b(text.encode(), digest_size=HASH_BYTES).hexdigest()
        return self._folder / name[:2] / f"{name}.features"

    def _read(self, text: str) -> tuple[Tensor, int] | None:
        """Return (features of the real tokens [n, C], slots S), or None."""
        try:
            content = self.path(text).read_bytes()
        except OSError:
            return None
        if content[:HASH_BYTES] != _hash(content[HASH_BYTES:]):
            return None
        entry = load(content[HASH_BYTES:])
        return entry["features"], int(entry["slots"])

    def _write(self, text: str, features: Tensor, slots: int) -> None:
        content = save({"features": features.contiguous(), "slots": torch.tensor(slots)})
        with contextlib.suppress(OSError):
            write_atomic(self.path(text), _hash(content) + content)


def _hash(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=HASH_BYTES).digest()


def left_padded(
    rows: Sequence[tuple[Tensor, int]], texts: tuple[str, ...], device: torch.device
) -> TextFeatures:
    """Put the real tokens of each row, [n, C], at the right end of its slots."""
    first, slots = rows[0]
    features = torch.zeros(len(rows), slots, first.shape[1], dtype=first.dtype)
    mask = torch.zeros(len(rows), slots, dtype=torch.bool)
    for row, (tokens, _) in enumerate(rows):
        start = slots - len(tokens)
        features[row, start:] = tokens
        mask[row, start:] = True
    return TextFeatures(features.to(device), mask.to(device), texts)
