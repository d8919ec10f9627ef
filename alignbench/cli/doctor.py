"""`alignbench doctor`: versions, devices, caches, which weights are here, and what can run."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from alignbench import __version__
from alignbench.cli.common import print_json, put
from alignbench.cli.options import Json, card_names
from alignbench.config.plan import make_plan
from alignbench.config.settings import resolve
from alignbench.errors import UserError, missing_packages
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
        "vapi", "--method", help="Method to ask runnability for.", autocompletion=card_names("methods")
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
    table = Table("model", "weights", f"run --method {method}", box=None, pad_edge=False)
    for name, model in facts["models"].items():
        table.add_row(name, model["weights"], model["runs"])
    console.print(table)
    console.print("evaluators", style="bold")
    for name, evaluator in facts["evaluators"].items():
        put(f"  {name:<24} {evaluator['runs']}")
        put(*(f"    {item['what']} → {item['fix']}" for item in evaluator["missing"]))


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


def _model(registry: Registry, method: str, name: str) -> dict[str, str]:
    """Whether weights are here and the first reason why a run cannot start."""
    try:
        plan = make_plan(registry, resolve(registry, method=method, model=name))
    except UserError as error:
        return {"weights": "", "runs": f"no: {error.what}"}
    present = all(status.ok for status in plan.weights.values())
    reasons = [f"{problem.where}: {problem.what}" for problem in plan.problems]
    more = f" (+{len(reasons) - 1} more)" if len(reasons) > 1 else ""
    return {
        "weights": "present" if present else "missing",
        "runs": f"no: {reasons[0]}{more}" if reasons else "yes",
    }


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
