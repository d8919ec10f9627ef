"""A run on many devices, on paper: memory, bytes exchanged, time. Arithmetic, all of it printed. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alignbench.config.adapter import lora_of
from alignbench.config.estimate import Estimate, estimate, gib
from alignbench.config.plan import Plan
from alignbench.config.settings import Origin, RunConfig
from alignbench.dealing.simulation import simulate, uneven
from alignbench.errors import UserError
from alignbench.files import parse_json

CARD = 78.0
"""GiB that a card sold with 80 GB leaves to a program."""
INSIDE, BETWEEN = 150e9, 25e9
"""Bytes a second and rank taken, not measured, for exchange inside a node (NVLink) and between (200 Gb/s)."""
SAMPLES = 512
"""Processes up to which dealing is simulated."""


@dataclass(frozen=True)
class Way:
    """One way to hold what is trained."""

    shards: int
    """Parts that what is trained is cut into."""
    trained: int
    """Parameters."""
    estimate: Estimate
    """Of one rank."""


def ways_of(plan: Plan, nodes: int, nproc: int) -> dict[str, Way]:
    """Return the ways that a plan can be trained on `nodes` × `nproc` devices, by `train.shard` or LoRA."""
    ranks, found = nodes * nproc, {}
    for kind, shards in {"none": 1, "full": ranks, "hybrid": nproc}.items():
        if kind != "hybrid" or nodes > 1:
            config = _changed(plan.config, adapter="none", shard=kind)
            held = estimate(config, plan.model, plan.method, processes=ranks, per_node=nproc)
            found[kind] = Way(shards, trained(plan), held)
    config = _changed(plan.config, adapter="lora", shard="none")
    lora = lora_of(config, plan.model, plan.method)
    if lora is not None and lora.trainable and trained(plan) == plan.model.policy.parameters:
        held = estimate(config, plan.model, plan.method, lora=lora, processes=ranks)
        found["LoRA"] = Way(1, lora.trainable, held)
    return found


def _changed(config: RunConfig, **train: str) -> RunConfig:
    values = {f"train.{name}": Origin(value, "on paper") for name, value in train.items()}
    return replace(config, values={**config.values, **values})


def trained(plan: Plan) -> int:
    """Return how many parameters a run trains without an adapter."""
    policy = plan.method is None or plan.method.updates == "policy"
    return plan.model.policy.parameters if policy else plan.model.tokenizer.parameters


def exchanged(parameters: int, ranks: int, shards: int) -> dict[str, float]:
    """Return bytes that a rank sends in one step, {collective: bytes}.

    Ring algorithms (Patarasuk & Yuan 2009; NCCL): of S bytes over N ranks an all-reduce sends 2(N−1)/N × S,
    an all-gather and a reduce-scatter (N−1)/N × S each. Sharded (Rajbhandari et al. 2020, section 7): bf16
    parameters are gathered in the forward and again in the backward pass of one micro-batch, fp32 gradients
    are reduced and scattered; hybrid: the scattered gradients are then all-reduced between nodes. What
    further micro-batches and collecting gather is not counted.
    """
    if shards == 1:
        return {"all-reduce of gradients": 2 * (ranks - 1) / ranks * 4.0 * parameters}
    ring = (shards - 1) / shards
    sent = {
        "2 all-gathers of parameters": 2 * ring * 2.0 * parameters,
        "reduce-scatter of gradients": ring * 4.0 * parameters,
    }
    groups = ranks // shards
    if groups > 1:
        sent["all-reduce between nodes"] = 2 * (groups - 1) / groups * 4.0 * parameters / shards
    return sent


def scale(plan: Plan, nodes: int, nproc: int, *, bench: Path | None = None) -> list[str]:
    """Return what a run would need and take on `nodes` × `nproc` devices, in at most 25 lines.

    Args:
        bench: a file that `alignbench bench --json` wrote on one device; without it no times are given.

    Raises:
        UserError: the file is not one.
    """
    ranks, ways = nodes * nproc, ways_of(plan, nodes, nproc)
    lines = [f"plan {plan.id} on {nodes} × {nproc} = {ranks} devices, on paper; GiB a rank:"]
    for name, way in ways.items():
        parts = " + ".join(f"{title} {gib(size)}" for title, size in _grouped(way.estimate).items())
        need = way.estimate.train_gib
        fits = "fits" if need <= CARD else "does not fit"
        lines.append(f"  {name:<10} {parts} = {gib(need)}: {fits} a card of 80 GB ({CARD:.0f} free)")
    for name, way in ways.items():
        sent = exchanged(way.trained, ranks, way.shards)
        parts = " + ".join(f"{title} {size / 1e9:.2f}" for title, size in sent.items())
        took = _seconds(sent, nodes, way.shards, ranks)
        lines.append(f"  exchange   {name}: {parts} GB a step, {took:.2f} s")
    lines.append(f"{'':13}at {INSIDE / 1e9:.0f} GB/s in a node, {BETWEEN / 1e9:.0f} GB/s between")
    return lines + (_times(plan, nodes, ranks, ways, bench) if bench else [])


def _grouped(estimate: Estimate) -> dict[str, float]:
    """The estimate's parts: what is held, copies that are whole, and what one micro-batch takes."""
    grouped = {"held": 0.0, "copies": 0.0, "micro-batch": 0.0}
    for name, size in estimate.parts.items():
        copies = name in ("autocast copy", "gathered for a while")
        batch = name in ("activations", "logits", "decoder")
        grouped["copies" if copies else "micro-batch" if batch else "held"] += size
    return grouped


def _seconds(sent: dict[str, float], nodes: int, shards: int, ranks: int) -> float:
    """Time of a rank's exchange, none of it hidden; a ring is as fast as its slowest link."""
    inside = nodes == 1 or 1 < shards < ranks
    return sum(
        size / (BETWEEN if title.endswith("between nodes") or not inside else INSIDE)
        for title, size in sent.items()
    )


def _times(plan: Plan, nodes: int, ranks: int, ways: dict[str, Way], bench: Path) -> list[str]:
    timings = _read(bench)
    images, lines = plan.config.train.images_per_step, []
    for timing in timings:
        figures = {figure["name"]: float(figure["value"]) for figure in timing["figures"]}
        rate = figures.get("images")
        if rate and "step" in figures:
            share = -(-images // ranks)
            for name, way in ways.items():
                if name == "LoRA":
                    continue  # the bench was of the full update
                sent = _seconds(exchanged(way.trained, ranks, way.shards), nodes, way.shards, ranks)
                step = share / rate + sent
                lines.append(
                    f"  step       {name}: {share} images / {rate:.3g} 1/s + {sent:.2f} s = {step:.2f} s; "
                    f"{plan.config.train.steps} steps {step * plan.config.train.steps / 3600:.2f} h"
                )
    cost = _cost(timings)
    return [*lines[:12], *(_evaluation(plan, ranks, cost) if cost else [])]


def _cost(timings: list[dict[str, Any]]) -> float:
    """Seconds of an image on one device: drawn (mean over settings), then looked at by each evaluator."""
    rates: dict[str, list[float]] = {"sampling from": [], "evaluator": []}
    for timing in timings:
        for kind, found in rates.items():
            if str(timing.get("title", "")).startswith(kind):
                found += [float(f["value"]) for f in timing["figures"] if f["name"] == "images"]
    drawn, seen = rates.values()
    return sum(1 / rate for rate in drawn) / max(len(drawn), 1) + sum(1 / rate for rate in seen)


def _evaluation(plan: Plan, ranks: int, cost: float) -> list[str]:
    protocol = plan.protocol
    sets = len(protocol.settings) * len(protocol.seeds) * (2 if plan.method else 1)
    units, shared = -(-protocol.samples // protocol.batch) * sets, min(ranks, SAMPLES)
    filled = simulate(units, uneven(shared, seed=0), seed=0)
    alone = protocol.samples * sets * cost / 3600
    return [
        f"  measure {protocol.samples:,} × {sets} sets × {cost:.3g} s = {alone:.3g} h alone, {units:,} units",
        f"{'':13}/ {shared} / {filled.efficiency:.0%} (dealing, simulated) = "
        f"{alone / shared / filled.efficiency:.3g} h, without scoring",
    ]


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        timings = parse_json(path.read_bytes())
        [float(figure["value"]) for timing in timings for figure in timing["figures"]]
    except (OSError, ValueError, LookupError, TypeError):
        raise UserError(
            f"{path} was not written by bench --json", fix="alignbench bench … --json > FILE"
        ) from None
    found: list[dict[str, Any]] = timings
    return found
