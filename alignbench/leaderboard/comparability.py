"""What may be compared with what, and which field stands in the way."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from alignbench.leaderboard.table import short
from alignbench.record import Result, RunRecord

UNCOUNTED = {"protocol.seeds", "protocol.settings"}
"""Options that do not change a protocol's digest: each row carries its seeds and its setting."""


def evaluator_name(result: Result) -> str:
    return result.evaluator.partition("@")[0]


def obstacle(a: RunRecord, x: Result, b: RunRecord, y: Result) -> str:
    """Say why two results of one evaluator, x of a and y of b, must not be compared; empty: they may."""
    if x.protocol.digest != y.protocol.digest:
        return _different_protocols(a, x, b, y)
    if x.reference != y.reference:
        return f"different references: {_digests(x.reference, y.reference)}"
    if x.evaluator != y.evaluator:
        return f"different evaluators: {x.evaluator} against {y.evaluator}"
    if x.assets != y.assets:
        return f"different assets: {', '.join(_differing_assets(x, y))}"
    if x.n != y.n:
        return f"different numbers of images: {x.n:,} against {y.n:,}"
    if x.seeds != y.seeds and "samples" not in {x.subject, y.subject}:
        return f"different sampling seeds: {_listed(x.seeds)} against {_listed(y.seeds)}"
    return ""


def why_nothing(a: RunRecord, xs: Sequence[Result], b: RunRecord, ys: Sequence[Result]) -> str:
    """Say why no result of one side has a partner on the other."""
    if xs[0].protocol.digest != ys[0].protocol.digest:
        return _different_protocols(a, xs[0], b, ys[0])
    settings = [_listed(dict.fromkeys(result.setting.title for result in results)) for results in (xs, ys)]
    return f"no metric at a setting of both ({settings[0]} against {settings[1]})"


def _different_protocols(a: RunRecord, x: Result, b: RunRecord, y: Result) -> str:
    """Name the fields that differ, as far as records know them."""
    p, q = x.protocol, y.protocol
    if p.name != q.name:
        return f"different protocols: {p.name} against {q.name}"
    if p.version != q.version:
        return f"different protocols: {p.name} version {p.version} against version {q.version}"
    fields = _differing_assets(x, y)
    if x.reference != y.reference:
        fields.append(f"reference {_digests(x.reference, y.reference)}")
    fields += _differing_values(a, b)
    if x.n != y.n:
        fields.append(f"{x.n:,} against {y.n:,} images")
    what = ", ".join(fields) or "its card was changed"
    return f"different protocols: both {p.name}, but {what} (digest {_digests(p.digest, q.digest)})"


def _differing_assets(x: Result, y: Result) -> list[str]:
    return [
        f"asset {name} {_digests(x.assets.get(name), y.assets.get(name))}"
        for name in sorted({*x.assets, *y.assets})
        if x.assets.get(name) != y.assets.get(name)
    ]


def _differing_values(a: RunRecord, b: RunRecord) -> list[str]:
    x, y = (values if isinstance(values := r.config.get("values"), dict) else {} for r in (a, b))
    return [
        f"{key} {x.get(key) or 'as on the card'} against {y.get(key) or 'as on the card'}"
        for key in sorted({*x, *y})
        if key.startswith("protocol.") and key not in UNCOUNTED and x.get(key) != y.get(key)
    ]


def _digests(x: str | None, y: str | None) -> str:
    return f"{short(x)} against {short(y)}"


def _listed(items: Iterable[object]) -> str:
    return ", ".join(map(str, items))
