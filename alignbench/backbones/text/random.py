"""Text features without any network, for checks of the engine with random weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from alignbench.api import TextFeatures
from alignbench.backbones.text.cache import left_padded
from alignbench.files import digest_of
from alignbench.randomness import generator

END = 1
"""A caption has a token for each word and one for its end, as with T5."""


class RandomText:
    """Normal numbers that are functions of (caption, slot); implements `api.TextEncoder`."""

    def __init__(self, *, slots: int, width: int, device: torch.device) -> None:
        self.slots, self.width, self.device = slots, width, device
        self.identity = digest_of({"random text": [slots, width]})

    def encode(self, texts: Sequence[str]) -> TextFeatures:
        """See `api.TextEncoder.encode`: float32."""
        rows = []
        for text in texts:
            count = min(len(text.split()) + END, self.slots)
            values = generator(0, f"random-text/{text}").standard_normal((count, self.width), np.float32)
            rows.append((torch.from_numpy(values), self.slots))
        return left_padded(rows, tuple(texts), self.device)
