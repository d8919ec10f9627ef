"""Float32 that is float32, where a number should depend little on the GPU: judges and tokenizers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Keep cuDNN from computing convolutions in TensorFloat-32, which it does unless told otherwise.

    TF32 keeps ten bits of each factor: it would move FID in its third digit and change one in a hundred codes
    of a tokenizer. Matrix products outside cuDNN keep torch's default, which is full precision.
    """
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield
