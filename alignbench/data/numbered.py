"""What the data sets here have in common beside their images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from alignbench.data.decode import Skipped


class NumberedImages:
    """All of `ImageDataset` but the images themselves; with captions, of `Captioned`."""

    notes: Sequence[str] = ()
    """What the images say of themselves and is not applied."""

    def __init__(
        self,
        labels: Sequence[int] | np.ndarray,
        class_names: Sequence[str],
        digest: str,
        *,
        captions: Sequence[str] | None = None,
        skipped: Sequence[Skipped] = (),
    ) -> None:
        self.labels = np.array(labels, dtype=np.int64)
        self.labels.flags.writeable = False
        self.class_names = tuple(class_names)
        self.num_classes = len(self.class_names)
        self.digest = f"sha256:{digest}"
        self.skipped = tuple(skipped)
        if captions is not None:  # that there are any makes a data set `Captioned`
            self.captions = captions

    def __len__(self) -> int:
        return len(self.labels)


class ImagesInMemory(NumberedImages):
    """Images in memory: pixels [N, H, W, 3] uint8, made read-only; the digest covers them and `content`."""

    def __init__(
        self,
        pixels: np.ndarray,
        labels: np.ndarray,
        class_names: Sequence[str],
        content: bytes,
        captions: Sequence[str] | None = None,
    ) -> None:
        self.pixels = pixels
        self.pixels.flags.writeable = False
        digest = hashlib.sha256(pixels.tobytes())
        digest.update(content)
        super().__init__(labels, class_names, digest.hexdigest(), captions=captions)

    def load(self, index: int) -> tuple[np.ndarray, int]:
        return self.pixels[index], int(self.labels[index])
