"""Find out what a golden folder holds and run the checks for it."""

from __future__ import annotations

import importlib
from pathlib import Path

import torch

from alignbench.errors import EXIT_FAILED, UserError
from alignbench.nets.precision import full_precision
from alignbench.verify.report import CheckReport

CHECKS = {
    "llamagen": (
        "alignbench.verify.llamagen",
        ("c2i_io.safetensors", "t2i_io.safetensors", "vq_io.safetensors"),
    ),
    "vapi": ("alignbench.verify.vapi", ("vapi_golden*.safetensors",)),
    "metrics": ("alignbench.verify.metrics", ("arrays.npz",)),
    "janus": ("alignbench.verify.janus", ("expected.safetensors",)),
}
"""{kind: (module with `check(folder)`, patterns any of which marks a folder of that kind)}."""


def kinds_of(folder: Path) -> list[str]:
    """Return the kinds of golden sets that a folder holds itself."""
    return [
        kind
        for kind, (_, patterns) in CHECKS.items()
        if any(next(folder.glob(pattern), None) is not None for pattern in patterns)
    ]


def verify(folder: Path, *, device: str = "cpu") -> dict[str, CheckReport]:
    """Check a golden folder, or every golden folder directly inside it.

    Args:
        device: where networks and formulas are computed, always in full precision. Metrics of image sets are
            float64 on the CPU.

    Raises:
        UserError: no such folder or device, or nothing in the folder that a check knows.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder", fix="name a folder of golden files with --golden DIR")
    candidates = [folder] if kinds_of(folder) else sorted(path for path in folder.iterdir() if path.is_dir())
    reports = {}
    with torch.device(_device(device)), full_precision():
        for candidate in candidates:
            for kind in kinds_of(candidate):
                check = importlib.import_module(CHECKS[kind][0]).check
                reports[f"{candidate.name} ({kind})"] = check(candidate)
    if not reports:
        raise UserError(
            f"{folder} holds no golden set that this version can check",
            fix=f"known sets: {', '.join(CHECKS)}; see docs/golden.md for their files",
            exit_code=EXIT_FAILED,
        )
    return reports


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
        if device.type == "meta":
            raise RuntimeError("it holds no numbers")
    except (RuntimeError, AssertionError) as error:  # what torch raises where it was built without a backend
        raise UserError(f"no device {name!r} here", fix="--device cpu, or cuda on a GPU") from error
    return device
