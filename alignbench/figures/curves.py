"""Learning curves: what `metrics.jsonl` says of each step, several configurations in one picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from alignbench.figures.picture import Look, Picture, Value, grid, label_axes, legend, looks
from alignbench.figures.source import NotDrawnError, Run, at_most, configurations, plural
from alignbench.leaderboard.cells import MOST
from alignbench.metrics.intervals import mean_interval

LOG = "metrics.jsonl"
SERIES = {
    "reward": "reward",
    "loss": "loss",
    "policy_loss": "policy loss",
    "prior_loss": "prior: cross-entropy [nats]",
    "kl": "KL to the start [nats]",
    "entropy": "entropy [nats]",
    "grad_norm": "gradient norm",
    "clip_fraction": "share of clipped ratios",
}
"""{name in the log: title}; parts of the reward stand behind the reward."""
ZERO = 1e-6
"""A series that never leaves this size is rounding, e.g. the loss of a policy whose ratio is 1."""
PART = "reward_std/"
"""Start of the names whose rest is a part of the reward."""
WINDOW = 0.05
"""Of the line's running mean: share of all steps to each side."""


def read_log(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return {name: (steps int64 [n], values float64 [n])} of a run folder; of a step told twice the later.

    Raises:
        NotDrawnError: no log, or a damaged one.
    """
    path = folder / LOG
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        steps: dict[int, dict[str, float]] = {int(line["step"]): line for line in lines}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise NotDrawnError(f"{path} cannot be read") from error
    ordered = [steps[step] for step in sorted(steps)]
    found = {}
    for name in dict.fromkeys(name for line in ordered for name in line):
        having = [line for line in ordered if isinstance(line.get(name), int | float)]
        found[name] = np.array([x["step"] for x in having]), np.array([x[name] for x in having], dtype=float)
    return found


def running_mean(values: np.ndarray) -> np.ndarray:
    """Return centred running means, [n] → [n]; the window is cut at both ends."""
    half = int(len(values) * WINDOW)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    low = np.maximum(np.arange(len(values)) - half, 0)
    high = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return np.asarray((sums[high] - sums[low]) / (high - low))


def curves(runs: Sequence[Run], name: str = "curves", *, columns: int = 4) -> Picture:
    """Draw reward, its parts, losses, entropy, gradient norm and clipping over the steps.

    Raises:
        NotDrawnError: none of the runs trained, or a log is missing or holds nothing that is drawn.
    """
    groups = configurations(runs)
    at_most(MOST, len(groups), "configurations")
    logs = {label: [(_seed(run), _log(run)) for run in members] for label, members in groups.items()}
    shown, zero = _panels([log for group in logs.values() for _, log in group])
    if not shown:
        raise NotDrawnError("the runs logged nothing that is drawn")
    figure, axes = grid(len(shown), columns=columns, size=(2.9, 2.2))
    rows: list[tuple[Value, ...]] = []
    for axis, series in zip(axes, shown, strict=True):
        label_axes(axis, "step", "")
        axis.set_title(_title(series), fontsize=9)
        for label, look in looks(list(groups)).items():
            drawn = [(seed, *log[series]) for seed, log in logs[label] if series in log]
            for seed, steps, values in drawn:
                pairs = zip(steps.tolist(), values.tolist(), strict=True)
                rows += [(label, seed, series, step, value) for step, value in pairs]
            _draw(axis, label, look, [(steps, values) for _, steps, values in drawn])
    if len(groups) > 1:
        legend(figure, axes)
    counts = " and ".join(sorted({plural(len(members), "training seed") for members in groups.values()}))
    several = any(len(members) > 1 for members in groups.values())
    still = f" Not drawn because always 0: {', '.join(map(_title, zero))}." if zero else ""
    band = " Bands are 95 % Student intervals over training seeds." if several else ""
    caption = (
        f"Training, {counts}: {', '.join(groups)}. Lines are running means over {2 * WINDOW:.0%} of the "
        f"steps, dots single steps.{band} Rewards and losses of different methods are different quantities."
        f"{still}"
    )
    return Picture(name, caption, figure, ("configuration", "seed", "series", "step", "value"), rows)


def _seed(run: Run) -> int | None:
    return run.record.train.seed if run.record.train else None


def _log(run: Run) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    if run.folder is None:
        raise NotDrawnError(f"{run.record.id} is a record alone: the steps are in its run folder")
    return read_log(run.folder)


def _panels(logs: Sequence[Mapping[str, tuple[np.ndarray, np.ndarray]]]) -> tuple[list[str], list[str]]:
    """Return the series that are drawn, parts of the reward behind it, and those that are always 0."""
    present = dict.fromkeys(name for log in logs for name in log)
    parts = []
    for part in (name.removeprefix(PART) for name in present if name.startswith(PART)):
        parts += [name for name in (part, f"reward/{part}") if name in present]
    known = [name for name in SERIES if name in present]
    at = known.index("reward") + 1 if "reward" in known else 0
    ordered = [*known[:at], *parts, *known[at:]]
    zero = [x for x in ordered if all(np.abs(log[x][1]).max(initial=0) < ZERO for log in logs if x in log)]
    return [name for name in ordered if name not in zero], zero


def _title(series: str) -> str:
    return SERIES.get(series, f"reward part: {series.removeprefix('reward/')}")


def _draw(axis: Axes, label: str, look: Look, runs: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    if not runs:
        return
    smooth = [(steps, running_mean(values)) for steps, values in runs]
    if len(runs) == 1:
        axis.plot(*runs[0], ".", color=look.colour, alpha=0.25, markersize=2)
        axis.plot(*smooth[0], color=look.colour, linestyle=look.line, label=label)
        return
    shared = sorted(set.intersection(*(set(steps.tolist()) for steps, _ in smooth)))
    lines = np.stack([values[np.isin(steps, shared)] for steps, values in smooth])
    spans = [mean_interval(column.tolist(), kind="training seeds") for column in lines.T]
    axis.plot(shared, lines.mean(axis=0), color=look.colour, linestyle=look.line, label=label)
    low, high = ([getattr(span, end) for span in spans] for end in ("low", "high"))
    axis.fill_between(shared, low, high, color=look.colour, alpha=0.15, linewidth=0)
