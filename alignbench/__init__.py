"""alignbench: a benchmark of post-training methods for autoregressive image generators.

The functions below are what the command line calls too; `docs/python.md` shows them at work. Importing this
package imports neither torch nor any implementation.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alignbench.api import Sampling
    from alignbench.commands import board, cards, compare, evaluate, load_model, plan, run, sample
    from alignbench.errors import RunFailed, UserError
    from alignbench.rewards.functions import reward

__version__ = "0.1.0"
__all__ = [
    "RunFailed",
    "Sampling",
    "UserError",
    "__version__",
    "board",
    "cards",
    "compare",
    "evaluate",
    "load_model",
    "plan",
    "reward",
    "run",
    "sample",
]

_HOME = {"Sampling": "api", "RunFailed": "errors", "UserError": "errors", "reward": "rewards.functions"}
"""{name: module it is defined in}; the others are in `commands`."""


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"alignbench.{_HOME.get(name, 'commands')}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
