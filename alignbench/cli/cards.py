"""`alignbench list` and `alignbench show`: what exists, without importing it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from alignbench.cli.common import folded, print_json, put
from alignbench.cli.options import Json, Plugins, completed, one_of
from alignbench.commands import catalogue, words
from alignbench.config.settings import COMMON_OPTIONS
from alignbench.errors import UserError, suggest
from alignbench.hub.transfer import human_size
from alignbench.registry import plugins
from alignbench.registry.lookup import SINGULAR, Registry
from alignbench.registry.schema import Card, Option
from alignbench.registry.tables import PublishedCard
from alignbench.text import NO_BREAK, aligned, visible


def list_cards(
    *,
    kind: str | None = typer.Argument(
        None,
        help="models, methods, evaluators, rewards, datasets, recipes, …",
        autocompletion=one_of(SINGULAR),
    ),
    plugin: Plugins,
    as_json: Json = False,
) -> None:
    """List what exists: all kinds in short, or one as a table."""
    registry = plugins.load_registry(plugin)
    plural = {SINGULAR[name].partition(" ")[0]: name for name in SINGULAR} | {name: name for name in SINGULAR}
    if kind is not None and kind not in plural:
        raise UserError(f"no kind named {kind!r}.{suggest(kind, SINGULAR)} Kinds: {', '.join(SINGULAR)}")
    kinds = [plural[kind]] if kind else list(SINGULAR)
    if kind is None and not as_json:
        _print_overview(registry)
        return
    listed = {name: _facts(registry, name) for name in kinds}
    if as_json:
        print_json(listed)
    else:
        _print_cards(kinds[0], listed[kinds[0]])


def _facts(registry: Registry, kind: str) -> dict[str, catalogue.Facts]:
    """Title, summary and facts of all cards of a kind; those of plug-ins that are broken are left out."""
    cards, problems = registry.usable(kind)
    facts = {}
    for name, card in cards.items():
        about = {"title": card.title, "summary": card.summary}
        try:
            facts[name] = about | catalogue.facts_of(registry, kind, name)
        except UserError as error:
            problems.append(f"{registry.locations[kind][name].path}: {error}")
    for problem in problems:
        put(f"left out: {problem}", stderr=True)
    return facts


def _print_overview(registry: Registry) -> None:
    """One line a kind: how many there are and the first names, as many as fit."""
    console = Console()
    for kind in SINGULAR:
        names = registry.names(kind)
        line, room = f"{kind:<11}{len(names):>4}  ", console.width - len(" and 999 more")
        shown = 0
        while shown < len(names) and len(line) + len(names[shown]) + 2 <= room:
            line += f"{', ' if shown else ''}{names[shown]}"
            shown += 1
        put(line + (f" and {len(names) - shown} more" if shown < len(names) else ""))
    put("", "alignbench list KIND: a table of one kind", "alignbench show NAME: everything about one of them")


HEADINGS = {
    "condition": "from",
    "image_size": "px",
    "parameters": "size",
    "download_bytes": "download",
    "chosen_by": "chosen by",
}
"""{fact: heading}; the others are headed by their names."""
BELOW = {
    "methods": "summary",
    "evaluators": "metrics",
    "rewards": "needs",
    "datasets": "summary",
    "recipes": "source",
    "protocols": "metrics",
    "assets": "title",
    "sweeps": "source",
}
"""{kind: its longest fact}: it stands under the others, over the whole width."""
LEGENDS = {
    "parameters": "size: parameters of the policy",
    "download_bytes": "download: – where the card does not say",
    "here": "here: whether its files and packages are on this machine",
}
MORE = {
    "models": "memory of a run: alignbench run --method METHOD --model NAME --dry-run",
    "datasets": "here, –: the data are your own",
    "rewards": "gradient: images can be pushed along it, as ste does",
}


def _print_cards(kind: str, cards: Mapping[str, catalogue.Facts]) -> None:
    """Print a table that fits 80 columns."""
    below = BELOW.get(kind, "")
    facts = list(cards.values())
    hidden = {"summary", below, *(() if kind == "published" else ("title",))}
    if kind == "recipes":
        hidden.add("default")
    keys = [key for key in dict.fromkeys(key for one in facts for key in one) if key not in hidden]
    headings = ["name", *(HEADINGS.get(key, key) for key in keys)]
    rows = [[name, *(_text(key, one.get(key)) for key in keys)] for name, one in cards.items()]
    right = [HEADINGS.get(key, key) for key in keys if any(type(one.get(key)) is int for one in facts)]
    console = Console()
    head, *lines = aligned(headings, rows, console.width, right)
    console.print(visible(head), style="bold", highlight=False, markup=False, soft_wrap=True)
    for line, one in zip(lines, facts, strict=True):
        label = "" if below in ("title", "summary") else f"{below}: "
        label = label if one.get("default", True) else f"only with --recipe; {label}"
        put(line, *(folded(label + _text(below, one[below]), "    ", "  ") if one.get(below) else []))
    legends = [text for key, text in LEGENDS.items() if key in keys]
    put(*(f"· {text}" for text in [*legends, *([MORE[kind]] if kind in MORE else [])]))


def _text(key: str, value: Any) -> str:
    """A fact as a cell."""
    if isinstance(value, bool):
        return "✓" if value else "✗"
    if key == "parameters":
        return f"{value / 1e9:.1f} B" if value >= 1e9 else f"{value / 1e6:.1f} M"
    if key == "download_bytes" and value is not None:
        return human_size(value) if value else "shipped"
    if isinstance(value, int):
        return f"{value:,}"
    text = (", ".join(value) if isinstance(value, list) else value) or "–"
    return re.sub(r"(?<=\d) (?=[GMk]B)", NO_BREAK, text)


def show(
    *,
    name: str = typer.Argument(
        help="Name of any card, or `train`, `model`, `protocol` for common keys.",
        autocompletion=completed(lambda line, *_: words.shown(line)),
    ),
    plugin: Plugins,
    as_json: Json = False,
) -> None:
    """Show one model, method, recipe, protocol, … with every fact its card holds."""
    if name in COMMON_OPTIONS:
        options = {key: option.model_dump() for key, option in COMMON_OPTIONS[name].items()}
        print_json(options) if as_json else _print_options(name, COMMON_OPTIONS[name])
        return
    registry = plugins.load_registry(plugin)
    kinds = [kind for kind, members in registry.locations.items() if name in members]
    if not kinds:
        known = [key for members in registry.locations.values() for key in members]
        raise UserError(f"nothing is named {name!r}.{suggest(name, known)} See: alignbench list")
    cards = {kind: registry.card(kind, name) for kind in kinds}
    if as_json:
        listed = [
            {"kind": kind, "name": name, **card.model_dump(mode="json")} for kind, card in cards.items()
        ]
        print_json(listed if len(listed) > 1 else listed[0])
        return
    for kind, card in cards.items():
        if isinstance(card, PublishedCard):
            _print_published(name, card, registry)
        else:
            _print_card(kind, name, card)
        put(f"  card: {registry.locations[kind][name].path}")


def _print_card(kind: str, name: str, card: Card) -> None:
    put(f"{SINGULAR[kind]} {name}: {card.title}", *folded(card.summary))
    options = getattr(card, "options", {})
    declared = all(isinstance(option, Option) for option in options.values())
    hidden = {"title", "summary", "notes"} | ({"options"} if declared else set())
    values = card.model_dump(mode="json", exclude=hidden)
    rows = [(key, _written(value)) for key, value in _flat(values)]
    room = max((len(key) for key, _ in rows), default=0)
    for key, value in rows:
        put(*folded(value, " " * (room + 4), f"  {key:<{room}}  "))
    put(*(line for note in card.notes for line in folded(f"note: {note}", "    ", "  ")))
    if options and declared:
        prefix = {"methods": "method", "datasets": "data", "models": "model"}.get(kind, kind)
        _print_options(prefix, options)


def _print_published(name: str, card: PublishedCard, registry: Registry) -> None:
    from alignbench.leaderboard import terminal

    put(f"published numbers {name}: {card.title}", *folded(card.summary), *filter(None, [card.paper]), "")
    put(*terminal.published_lines(card, registry.reward_cards(), Console().width))
    said = [f"disagrees with itself: {x.what}: {' / '.join(x.values)}" for x in card.inconsistencies]
    said += [f"note: {note}" for note in card.notes]
    put(*(line for text in said for line in folded(text, "    ", "  ")))


def _print_options(prefix: str, options: dict[str, Option]) -> None:
    table = Table("key", "default", "meaning", box=None, pad_edge=False)
    for key, option in options.items():
        allowed = f" [{_written(option.choices)}]" if option.choices else ""
        default = _written(option.default) or "–"
        texts = f"{prefix}.{key}", default, f"{option.doc}{allowed}"
        table.add_row(*(Text(visible(text)) for text in texts))
    Console().print(table)


def _written(value: Any) -> str:
    """A value as `--set` takes it, a list with commas."""
    if isinstance(value, list):
        return ", ".join(map(_written, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Flatten nested tables to dotted keys; empty values are left out."""
    rows: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for number, item in enumerate(value):
                rows += _flat(item, f"{prefix}{key}.{number}.")
        elif value not in (None, "", [], {}):
            rows.append((f"{prefix}{key}", value))
    return rows
