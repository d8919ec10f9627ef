"""Records of the tests of leaderboards.

`golden/records` holds seven hand-made ones of one protocol (3 sampling seeds, 1000 images): a base run; VA-π
with training seeds 0, 1, 2; AR-GRPO with one seed, one recall missing and a reward on the evaluator's
network; a partial run; a run on synthetic data. VA-π wins at T=1 and loses with guidance. `one_seed` and
`given` make records of a single set of images.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alignbench.leaderboard.board import build, collect
from alignbench.leaderboard.table import Board, Row, Table
from alignbench.record import RunRecord, read
from alignbench.registry.protocol import AssetCard, MetricFact
from alignbench.registry.schema import RewardCard

DATA = Path(__file__).parents[1] / "golden" / "records"
FACTS = {
    "fd-digits": MetricFact(title="FD", direction="lower", digits=3, networks=["digits-features-a"]),
    "recall": MetricFact(title="Recall", direction="higher", digits=2),
    "colour": MetricFact(title="Colours", direction="higher", digits=2, detail=True),
}
FD, RECALL = ("fd-digits", "distribution-digits@1"), ("recall", "distribution-digits@1")
OFFICIAL, OTHER, THIRD = ("sha256:" + letter * 64 for letter in "cde")
CARDS = {
    "real-statistics": AssetCard(
        title="Real", what="reference", file="a.npz", sha256=OFFICIAL.removeprefix("sha256:")
    ),
    "a-network": AssetCard(title="Network", what="network", file="a.pth"),
}
REWARDS = {
    name: RewardCard.model_validate(
        {"title": name, "target": "a:b", "direction": "lower", "differentiable": True, "scope": scope}
    )
    for name, scope in {"mse": "distance", "digits-class": "image"}.items()
}
NAMES = {
    "base": "base-llamagen-tiny-s0-00000000",
    "ar-grpo": "ar-grpo-llamagen-tiny-s0-44444444",
    "vapi-0": "vapi-llamagen-tiny-s0-11111111",
    "vapi-1": "vapi-llamagen-tiny-s1-22222222",
    "partial": "vapi-llamagen-tiny-s3-55555555",
    "synthetic": "vapi-llamagen-tiny-s4-66666666",
}


def edited(record: RunRecord, change: Callable[[dict[str, Any]], object]) -> RunRecord:
    """A record with a changed content."""
    content = json.loads(record.model_dump_json(by_alias=True))
    change(content)
    return RunRecord.model_validate(content)


def load(name: str, change: Callable[[dict[str, Any]], object] = lambda content: None) -> RunRecord:
    """One of the stored records, perhaps changed."""
    return edited(read(DATA / f"{NAMES[name]}.json"), change)


def stored(*extra: RunRecord) -> Board:
    """The board of all stored records and others."""
    return build([*collect([DATA]), *extra], FACTS, rewards=REWARDS)


def table_of(*records: RunRecord) -> Table:
    return only(build(records, FACTS))


def only(board: Board) -> Table:
    (table,) = board.tables
    return table


def row(table: Table, title: str, setting: str) -> Row:
    (found,) = [x for x in table.rows if x.title == title and x.setting.name == setting]
    return found


def one_seed(
    fd: float,
    half: float | None,
    *,
    base: tuple[float, float | None] = (2.40, 0.10),
    result: dict[str, Any] | None = None,
    protocol: dict[str, Any] | None = None,
    **changes: Any,
) -> RunRecord:
    """A method run at one setting with a single sampling seed: values of it and of the base, with the
    half-widths of their intervals (None: no interval); changes to both results, their protocol, the record.
    """

    def change(content: dict[str, Any]) -> None:
        before, _, after, *_ = content["results"]
        content["results"] = [before, after]
        for part, (value, width) in ((before, base), (after, (fd, half))):
            interval = None if width is None else [value - width, value + width]
            part |= {
                "seeds": [0], "metrics": {"fd-digits": [value]}, "intervals": {"fd-digits": [interval]},
            }  # fmt: skip
            part |= result or {}
            part["protocol"] |= protocol or {}
        content |= changes

    return load("vapi-0", change)


def named(number: int, fd: float, half: float | None, **changes: Any) -> RunRecord:
    """One of several configurations."""
    record = one_seed(fd, half, **changes, id=f"vapi-llamagen-tiny-s0-{number:08d}")
    config = record.config | {"values": {"method.group_size": number}}
    return record.model_copy(update={"config": config})


def given(name: str, fd: float, half: float | None, **changes: Any) -> RunRecord:
    """Images made elsewhere."""
    model = {"name": name, "title": name.title(), "parameters": 0, "trainable_parameters": 0, "weights": {}}
    unknown = dict.fromkeys(["temperature", "top_k", "top_p", "cfg_scale", "cfg_interval"])
    setting = {"name": "given", "title": "given images", **unknown}

    def change(content: dict[str, Any]) -> None:
        content |= dict.fromkeys(["method", "train", "recipe", "data"])
        content |= {"id": f"samples-{name}", "kind": "samples", "exports": {}, "model": model}
        content["results"] = [content["results"][1] | {"subject": "samples", "setting": setting}]

    return edited(one_seed(fd, half, **changes), change)


def digest(letter: str) -> dict[str, str]:
    return {"digest": "sha256:" + letter * 64}


def assets(**used: str) -> dict[str, Any]:
    return {"assets": {name.replace("_", "-"): value for name, value in used.items()}}


def detailed(record: RunRecord, **changes: Any) -> RunRecord:
    """A record with a metric that is mere detail, and other changes to its protocols."""

    def change(content: dict[str, Any]) -> None:
        for result in content["results"]:
            result["metrics"]["colour"] = [0.25]
            result["protocol"] |= changes

    return edited(record, change)
