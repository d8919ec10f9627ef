"""Run a block without TensorFloat-32, where numbers should depend little on the GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Keep cuDNN from computing convolutions in TensorFloat-32, which it does unless told otherwise.

    TF32 keeps ten bits of each factor; on random weights it changed nearly one in a hundred codes of a
    tokenizer (docs/performance.md). Matrix products outside cuDNN keep torch's default, full precision.
    """
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield
