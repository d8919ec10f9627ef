"""Scale on paper: closed forms, and whether Janus-Pro-7B fits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignbench.commands import jobs
from alignbench.config.scale import exchanged, scale, ways_of
from alignbench.errors import UserError


def test_bytes_of_a_ring() -> None:
    assert exchanged(1000, 4, 1) == {"all-reduce of gradients": 6000.0}  # 2 × 3/4 × 4 B × 1000
    assert sum(exchanged(1000, 4, 4).values()) == 2 * 0.75 * 2000 + 0.75 * 4000
    assert exchanged(1000, 8, 4)["all-reduce between nodes"] == 2 * 0.5 * 4 * 1000 / 4


def test_times_come_from_a_bench(tmp_path: Path) -> None:
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
    assert "× 1 s =" in text, "(1/2 + 1/1) / 2 + 1/4"
    bench.write_text("{}x")
    with pytest.raises(UserError, match=r"was not written by bench --json"):
        scale(plan, 8, 8, bench=bench)


@pytest.mark.parametrize(
    ("nodes", "nproc", "images", "kind", "gib"),
    [(1, 8, 128, "full", 56), (8, 8, 512, "hybrid", 44), (8, 8, 512, "full", 33), (1, 1, 8, "LoRA", 45)],
)
def test_a_model_of_7b_takes_what_the_pages_on_shards_and_adapters_say(
    nodes: int, nproc: int, images: int, kind: str, gib: int
) -> None:
    values = ["precision=bf16", "recompute=true", "micro_batch=8", f"images_per_step={images}"]
    plan = jobs.plan("vapi", "janus-pro-7b", options=[f"train.{value}" for value in values]).plan
    ways = ways_of(plan, nodes, nproc)
    assert round(ways[kind].estimate.train_gib) == gib
    lines = {line.split()[0]: line for line in scale(plan, nodes, nproc)[1:]}
    assert f"= {gib}: fits a card of 80 GB" in lines[kind] and "does not fit" in lines["none"]
