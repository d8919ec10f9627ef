"""Scale on paper: closed forms, and whether Janus-Pro-7B fits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignbench.commands import jobs
from alignbench.config.scale import exchanged, scale
from alignbench.errors import UserError


def test_bytes_of_a_ring() -> None:
    assert exchanged(1000, 4, 1) == {"all-reduce of gradients": 6000.0}  # 2 × 3/4 × 4 B × 1000
    assert sum(exchanged(1000, 4, 4).values()) == 2 * 0.75 * 2000 + 0.75 * 4000
    assert exchanged(1000, 8, 4)["all-reduce between nodes"] == 2 * 0.5 * 4 * 1000 / 4


def test_a_model_of_7b_fits_80_gb_in_shards_and_the_arithmetic_is_printed(tmp_path: Path) -> None:
    plan = jobs.plan("vapi", "janus-pro-7b").plan
    bench = tmp_path / "bench.json"
    figures = {
        "training step": 4.0,
        "sampling from it, a": 2.0,
        "sampling from it, b": 1.0,
        "evaluator e": 4.0,
    }
    timings = [{"title": t, "figures": [{"name": "images", "value": v}]} for t, v in figures.items()]
    timings[0]["figures"] = [*timings[0]["figures"], {"name": "step", "value": 32.0}]
    bench.write_text(json.dumps(timings))
    lines = scale(plan, 8, 8, bench=bench)
    text = "\n".join(lines)
    assert len(lines) <= 25
    assert "6,591,791,104 parameters × 16 B = 98.2 GiB" in text
    assert "none       98.2 / 1" in text and "GiB a rank: does not fit" in text
    assert "full       98.2 / 64" in text
    assert "× 1 s =" in text, "(1/2 + 1/1) / 2 + 1/4"
    (full,) = [line for line in scale(plan, 1, 8) if line.startswith("  full")]
    assert "98.2 / 8" in full and "fits a card of 80 GB" in full
    bench.write_text("{}x")
    with pytest.raises(UserError, match=r"was not written by bench --json"):
        scale(plan, 8, 8, bench=bench)
