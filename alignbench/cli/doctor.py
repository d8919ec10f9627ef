"""`alignbench doctor`: versions, devices, caches, which weights are here, and what can run."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterable
from typing import Any

import typer
from rich.console import Console

from alignbench import __version__
from alignbench.cli.common import folded, print_json, put
from alignbench.cli.options import METHODS, Json
from alignbench.config.plan import make_plan
from alignbench.config.settings import resolve
from alignbench.errors import Problem, UserError, missing_packages, ways
from alignbench.files import cache_root
from alignbench.hub.locate import locate_asset
from alignbench.registry.lookup import Registry
from alignbench.runs.environment import version_of

PACKAGES = (
    "torch", "accelerate", "safetensors", "huggingface_hub", "torch-fidelity", "lpips", "torchvision",
    "scikit-learn", "datasets", "ftfy", "beautifulsoup4", "transformers", "open-clip-torch",
)  # fmt: skip
VARIABLES = (
    "HF_HOME", "HF_HUB_OFFLINE", "TORCH_HOME", "ALIGNBENCH_CACHE", "ALIGNBENCH_PATH", "OMP_NUM_THREADS",
)  # fmt: skip


def doctor(
    as_json: Json = False,
    method: str = typer.Option(
        "vapi", "--method", help="Method to ask runnability for.", autocompletion=METHODS
    ),
) -> None:
    """Report what is installed and present, and which models and evaluators can run here."""
    facts = gather(method)
    console = Console()
    if as_json:
        print_json(facts)
        return
    for section in ("versions", "device", "environment"):
        console.print(section, style="bold")
        put(*(f"  {key:<20} {value}" for key, value in facts[section].items()))
    shared = _numbered([*facts["models"].values(), *facts["evaluators"].values()])
    console.print(f"models: what can run --method {method}", style="bold", highlight=False)
    _print_runnable(facts["models"], shared)
    console.print("evaluators", style="bold")
    _print_runnable(facts["evaluators"], shared)
    if shared:
        console.print("missing", style="bold")
    for (what, fix), number in shared.items():
        put(*folded(what, " " * 6, f"  {number:>2}  "), *(f"      → {way}" for way in ways(fix)))


def _numbered(things: Iterable[dict[str, Any]]) -> dict[tuple[str, str], int]:
    """{what is missing and what brings it: its number}, each once; but for a model's own weights."""
    found = dict.fromkeys(_key(item) for thing in things for item in thing["missing"] if not _is_own(item))
    return {key: number for number, key in enumerate(found, start=1)}


def _print_runnable(things: dict[str, Any], shared: dict[tuple[str, str], int]) -> None:
    """Whether each of them runs, the numbers of what it lacks, and what brings its own weights."""
    for name, thing in things.items():
        own = [item for item in thing["missing"] if _is_own(item)]
        numbers = sorted({shared[_key(item)] for item in thing["missing"] if not _is_own(item)})
        lacks = ", ".join([*(["weights"] if own else []), *map(str, numbers)])
        put(f"  {name:<24} {f'✗ lacks {lacks}' if lacks else '✓'}")
        # The other way, a file of one's own, is said by the plan.
        put(*dict.fromkeys(f"      → {ways(item['fix'])[0]}" for item in own))


def _key(item: dict[str, str]) -> tuple[str, str]:
    return item["what"], item["fix"]


def _is_own(item: dict[str, str]) -> bool:
    return item.get("where", "").startswith("weights/")


def gather(method: str) -> dict[str, Any]:
    registry = Registry.default()
    registry.method(method)  # a wrong name is no property of the models
    versions = {"alignbench": __version__, "python": platform.python_version()}
    versions |= {name: version_of(name) or "not installed" for name in PACKAGES}
    cache = cache_root()
    place = next(path for path in (cache, *cache.parents) if path.exists())
    environment = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    environment |= {"cache": str(cache), "free disk": f"{shutil.disk_usage(place).free / 2**30:.0f} GiB"}
    return {
        "versions": versions,
        "device": _device(),
        "environment": {**environment, "executable": sys.executable},
        "models": {name: _model(registry, method, name) for name in registry.names("models")},
        "evaluators": {name: _evaluator(registry, name) for name in registry.names("evaluators")},
    }


def _device() -> dict[str, str]:
    try:
        import torch
    except ImportError as error:
        return {"torch": f"cannot be imported: {error}"}
    found = {"cpu": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"}
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        found[f"cuda:{number}"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return found


def _model(registry: Registry, method: str, name: str) -> dict[str, Any]:
    """Whether weights are here, and all that keeps a run from starting."""
    try:
        plan = make_plan(registry, resolve(registry, method=method, model=name))
    except UserError as error:
        return {"weights": "", "runs": "no", "missing": [{"what": error.what, "fix": error.fix}]}
    present = all(status.ok for status in plan.weights.values())
    return {
        "weights": "present" if present else "missing",
        "runs": "no" if plan.problems else "yes",
        "missing": [_item(problem) for problem in plan.problems],
    }


def _item(problem: Problem) -> dict[str, str]:
    """A problem; files say enough by their names, so that an evaluator lacks the same one."""
    is_file = problem.where.startswith(("assets/", "weights/", "reward "))
    said = problem.what if is_file else f"{problem.where}: {problem.what}"
    return {"where": problem.where, "what": said, "fix": problem.fix}


def _evaluator(registry: Registry, name: str) -> dict[str, Any]:
    """Whether an evaluator can run, and what is missing with the command that brings it."""
    try:
        card = registry.evaluator(name)
        statuses = [locate_asset(asset, registry.asset(asset)) for asset in card.assets]
    except UserError as error:
        return {"runs": "no", "missing": [{"what": error.what, "fix": error.fix}]}
    absent, command = missing_packages(card.packages, card.extra)
    missing = [{"what": f"module {package} is not installed", "fix": command} for package in absent]
    missing += [{"what": status.reason, "fix": status.fix} for status in statuses if not status.ok]
    return {"runs": "no" if missing else "yes", "missing": missing}
