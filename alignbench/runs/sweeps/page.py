"""The table of a sweep as people read it: a Markdown file, and the same on a terminal."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.text import Text

from alignbench.files import write_atomic
from alignbench.leaderboard import cells, terminal
from alignbench.leaderboard.markdown import bullets, grid, section, text_of
from alignbench.leaderboard.table import Cell, Column
from alignbench.registry.lookup import Registry
from alignbench.registry.protocol import MetricFact
from alignbench.runs.sweeps import claims
from alignbench.runs.sweeps.sweep import Sweep, text
from alignbench.runs.sweeps.table import Line, all_measured, as_dict, base, column_of, measure
from alignbench.text import markdown_code

ONE_SEED = "Every row is one trained model: nothing is said about other training seeds."


def write(sweep: Sweep, registry: Registry, failures: Mapping[str, str]) -> None:
    """Write `sweep.md` and `sweep.json` into the sweep's folder."""
    facts = registry.metric_facts()
    lines = measure(sweep, facts, registry.reward_cards())
    write_atomic(sweep.out / "sweep.md", markdown(sweep, lines, facts, failures))
    content = as_dict(sweep, lines, facts, failures)
    write_atomic(sweep.out / "sweep.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")


@dataclass(frozen=True)
class Texts:
    """The cells of the table, one entry or row for the base and for each configuration."""

    names: list[str]
    external: list[str]
    """Empty where it says nothing."""
    heads: list[str]
    groups: dict[str, list[list[str]]]
    """{title: rows of numbers under `heads`}."""
    ends: dict[str, list[str]]
    """{heading: column}: finished seeds and time."""


def texts_of(sweep: Sweep, lines: Sequence[Line], facts: Mapping[str, MetricFact]) -> Texts:
    """Return the table in words; bold is `**name**`, the base `*base*`."""
    card, untouched = sweep.card, base(sweep, facts)
    everything = [untouched, *(line.measured for line in lines)]
    metrics = card.columns or sorted(
        (metric for metric in facts if any(metric in one[card.setting] for one in everything)),
        key=lambda metric: metric != card.metric,
    )
    columns = [column_of(metric, facts) for metric in metrics]
    shown = everything if any(untouched.values()) else everything[1:]
    groups = {
        title: [_texts(one[setting], columns) for one in shown]
        for title, setting in (card.groups or {"": card.setting}).items()
    }
    minutes = bool(card.groups)  # as papers print it
    first = 0 if shown is everything else 1
    names, external, seeds, times = ["*base*"], ["✗"], ["–"], ["–"]
    for line in lines:
        name, spent = line.configuration.name, line.train_seconds
        names.append(f"**{name}**" if line.best else f"{name} =" if line.tied else name)
        external.append(line.external)
        seeds.append(f"{len(line.seeds)} of {len(line.runs)}")
        times.append("" if spent is None else f"{spent / 60:.2f}" if minutes else f"{spent:.1f}")
    several = len({line.configuration.method for line in lines}) > 1
    ends = {"seeds": seeds[first:], "train min" if minutes else "train s": times[first:]}
    return Texts(names[first:], external[first:] if several else [], cells.heads(columns), groups, ends)


def markdown(
    sweep: Sweep, lines: Sequence[Line], facts: Mapping[str, MetricFact], failures: Mapping[str, str]
) -> str:
    """Return the page of a sweep."""
    texts = texts_of(sweep, lines, facts)
    columns = {"configuration": texts.names, **({cells.EXTERNAL: texts.external} if texts.external else {})}
    for title, rows in texts.groups.items():
        numbers = [list(column) for column in zip(*rows, strict=True)]
        columns |= {f"{title} {head}".strip(): x for head, x in zip(texts.heads, numbers, strict=False)}
    columns |= texts.ends
    right = columns.keys() - {"configuration", cells.EXTERNAL}
    table = grid(list(columns), zip(*columns.values(), strict=True), right=right)
    said = section("What the paper says, and what is seen here", bullets(claims_of(sweep, lines, facts)))
    about, made = about_of(sweep, facts), f"Made by {markdown_code(sweep.command)}. {reading(sweep)}"
    notes = bullets(notes_of(sweep, lines, failures))
    words = [line for paragraph in [*about[1:], made] for line in (paragraph, "")]
    return text_of([f"# {about[0]}", "", *words, *table, "", *said, *notes])


def claims_of(sweep: Sweep, lines: Sequence[Line], facts: Mapping[str, MetricFact]) -> list[str]:
    """What became of the paper's claims."""
    decided = claims.decided(sweep.card, all_measured(lines, base(sweep, facts)), facts)
    alone = [ONE_SEED] if decided and len(sweep.card.seeds) == 1 else []
    return [*(one.text for one in decided), *alone]


def _texts(measured: Mapping[str, Cell], columns: Sequence[Column]) -> list[str]:
    held = [(column, measured.get(column.metric)) for column in columns]
    return [column.shown(cell.interval) + "†" * cell.rewarded if cell else "" for column, cell in held]


def about_of(sweep: Sweep, facts: Mapping[str, MetricFact]) -> list[str]:
    """Title, summary if there is one, and how its numbers are made."""
    card, plan = sweep.card, sweep.runs[0].plan
    metric = facts[card.metric].title if card.metric in facts else card.metric
    setting = plan.protocol.settings[card.setting].title
    return [
        card.title,
        *filter(None, [card.summary]),
        f"Source: {card.source}. Model {plan.model.title}; protocol {sweep.protocol} @ "
        f"{plan.protocol_digest[7:15]}, {plan.protocol.samples:,} images, sampling seeds "
        f"{', '.join(map(str, plan.protocol.seeds))}, shown at {setting}; chosen by {metric}.",
    ]


def reading(sweep: Sweep, best: str = "Bold") -> str:
    """How to read the table, where the best is marked by `best`."""
    among = "of its row" if sweep.card.choose == "row" else "of all"
    return (
        "± is a 95 % Student interval over training seeds, or over sampling seeds where there is one "
        f"training seed. {best} is the best mean {among}, = "
        "a configuration that it does not beat significantly (95 %; Student's t over pairs of equal sampling "
        "seeds, else Welch's; no correction for the number of comparisons; single values are not tested)."
    )


def notes_of(sweep: Sweep, lines: Sequence[Line], failures: Mapping[str, str]) -> list[str]:
    rewarded = any(cell.rewarded for x in lines for found in x.measured.values() for cell in found.values())
    notes = [*sweep.card.notes, *([cells.REWARDED] if rewarded else [])]
    if sweep.card.choose == "row":
        trials = Counter(line.configuration.row for line in lines)
        counts = ", ".join(f"{row} {count}" for row, count in trials.items())
        if len(set(trials.values())) == 1:
            counts = f"{trials.most_common()[0][1]} each"
        notes.append(f"Configurations tried: {counts}.")
        for line in (line for line in lines if line.best):
            point = ", ".join(f"{key} = {text(value)}" for key, value in line.configuration.point.items())
            edge = ", ".join(_edges(line, lines))
            remark = f", at the edge of what was tried ({edge})" if edge else ""
            notes.append(f"Chosen for {line.configuration.row}: {point}{remark}.")
    return [*notes, *(f"Failed: {name}: {reason}" for name, reason in failures.items())]


def _edges(best: Line, lines: Sequence[Line]) -> list[str]:
    """Numeric axes of its row on which a line is the smallest or largest: a wider grid might do better."""
    row = [line.configuration.point for line in lines if line.configuration.row == best.configuration.row]
    edges = []
    for key, value in best.configuration.point.items():
        tried = {point[key] for point in row if key in point}
        numeric = all(isinstance(one, int | float) and not isinstance(one, bool) for one in tried)
        if numeric and len(tried) > 1 and value in (min(tried), max(tried)):
            edges.append(key)
    return edges


# --- terminal -------------------------------------------------------------------------------------


def shown(sweep: Sweep, registry: Registry, failures: Mapping[str, str]) -> RenderableType:
    """Return the table for a terminal, narrow enough for 80 columns: one part for each group of columns."""
    facts = registry.metric_facts()
    lines = measure(sweep, facts, registry.reward_cards())
    texts, about = texts_of(sweep, lines, facts), about_of(sweep, facts)
    parts: list[RenderableType] = [*map(Text, about)]
    for number, (title, rows) in enumerate(texts.groups.items()):
        # A pipe shows no bold.
        left = {"configuration": [name.strip("*") + " *" * (name[:2] == "**") for name in texts.names]}
        if texts.external and not number:
            left[cells.EXTERNAL] = texts.external
        ends = {} if number else texts.ends  # once is enough
        numbers = [[cell.replace(" ± ", "\n±") for cell in column] for column in zip(*rows, strict=True)]
        heads = [head.replace(" ", "\n") for head in (texts.heads if numbers else [])]
        columns = {**left, **dict(zip(heads, numbers, strict=True)), **ends}
        right = columns.keys() - left.keys()
        table = zip(*columns.values(), strict=True)
        parts.append(terminal.grid(title, list(columns), table, right=right, gap=1))
    decided = [claim.replace("**", "") for claim in claims_of(sweep, lines, facts)]
    said = [*decided, *notes_of(sweep, lines, failures), reading(sweep, "*")]
    return Group(*parts, *terminal.bullets(said))
