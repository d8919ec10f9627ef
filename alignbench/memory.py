"""Out of memory, said so that a person knows which knob to turn."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from alignbench.errors import RunFailed


@contextlib.contextmanager
def named_shortage(what: str, fix: str) -> Iterator[None]:
    """Turn a shortage of memory inside the block into a failed run.

    Args:
        what: needs the memory, as a clause.
        fix: the remedy.

    Raises:
        RunFailed: the device or the machine had too little memory.
    """
    try:
        yield
    except RuntimeError as error:  # the CPU's allocator has no exception of its own
        import torch

        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise RunFailed(what, fix=fix) from error


def smaller_batch(batch: int) -> str:
    """What to do where a protocol's images need too much memory."""
    larger = "a device with more memory"
    return f"{larger}, or --set protocol.batch={batch // 2}: another protocol" if batch > 1 else larger
