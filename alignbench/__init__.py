"""alignbench: a benchmark of post-training methods for autoregressive image generators.

The functions below are what the command line calls too; `docs/python.md` shows them at work. Importing this
package imports neither torch nor any implementation.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alignbench.api import Sampling
    from alignbench.commands.jobs import evaluate, plan, run
    from alignbench.commands.models import load_model, sample
    from alignbench.commands.tables import board, cards, compare
    from alignbench.errors import RunFailed, UserError
    from alignbench.evaluators.functions import metric
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
    "metric",
    "plan",
    "reward",
    "run",
    "sample",
]

_HOME = {
    "api": ["Sampling"],
    "commands.jobs": ["evaluate", "plan", "run"],
    "commands.models": ["load_model", "sample"],
    "commands.tables": ["board", "cards", "compare"],
    "errors": ["RunFailed", "UserError"],
    "evaluators.functions": ["metric"],
    "rewards.functions": ["reward"],
}
"""{module: what it defines}."""


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for."""
    for module, names in _HOME.items():
        if name in names:
            return getattr(importlib.import_module(f"alignbench.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
