"""Common to all tests: offline, one thread, a cache of their own."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

DATA = Path(__file__).parent / "golden"
ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True, scope="module")
def _libraries_are_no_garbage() -> None:
    """Every run collects garbage: the imported libraries, half a second's search, are left out of it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every test away from the user's cache and plug-ins."""
    monkeypatch.setenv("ALIGNBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ALIGNBENCH_PATH", raising=False)


@pytest.fixture
def few_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train on 60 drawn scenes instead of 6000: drawing all of them takes most of a second."""
    from alignbench.data import shapes

    monkeypatch.setattr(shapes, "COUNTS", {**shapes.COUNTS, "pretraining": 60, "train": 60})


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the processes that `tests.training.sharded` trains in."""
    from alignbench.data import shapes
    from alignbench.rewards import requests
    from tests.training.sharded import made_small

    monkeypatch.setattr(shapes, "COUNTS", shapes.COUNTS)
    monkeypatch.setattr(requests, "RANGE", requests.RANGE)
    made_small()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say plainly what does not run, and why."""
    import torch

    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
