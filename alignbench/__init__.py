"""alignbench: a benchmark of post-training methods for autoregressive image generators.

Importing this package imports neither torch nor any implementation.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import `reward` when it is first asked for."""
    if name == "reward":
        from alignbench.rewards.functions import reward

        return reward
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
