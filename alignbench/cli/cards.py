"""`alignbench list` and `alignbench show`: what exists, without importing it."""

from __future__ import annotations

from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from alignbench.cli.common import print_json, put
from alignbench.cli.options import Json, Plugins
from alignbench.config.settings import COMMON_OPTIONS
from alignbench.errors import UserError, suggest
from alignbench.registry import plugins
from alignbench.registry.lookup import SINGULAR, Registry
from alignbench.registry.schema import Card, Option
from alignbench.registry.tables import PublishedCard
from alignbench.text import visible


def list_cards(
    *,
    kind: str | None = typer.Argument(
        None, help="models, methods, evaluators, rewards, datasets, recipes, …"
    ),
    plugin: Plugins,
    as_json: Json = False,
) -> None:
    """List what exists, of one kind or of all."""
    registry = plugins.load_registry(plugin)
    if kind is not None and kind not in SINGULAR:
        raise UserError(f"no kind named {kind!r}.{suggest(kind, SINGULAR)} Kinds: {', '.join(SINGULAR)}")
    kinds = [kind] if kind else list(SINGULAR)
    cards = {}
    for name in kinds:
        cards[name], problems = registry.usable(name)
        for problem in problems:
            put(f"left out: {problem}", stderr=True)
    if as_json:
        facts = {"title", "summary"}
        print_json({k: {n: c.model_dump(include=facts) for n, c in v.items()} for k, v in cards.items()})
        return
    for name, members in cards.items():
        table = Table(title=name, title_justify="left", box=None, show_header=False, pad_edge=False)
        for key, card in members.items():
            table.add_row(*(Text(visible(text)) for text in (key, card.summary or card.title)))
        Console().print(table)


def show(
    *,
    name: str = typer.Argument(help="Name of any card, or `train`, `model`, `protocol` for common keys."),
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
    put(f"{SINGULAR[kind]} {name}: {card.title}", *filter(None, [card.summary]))
    options = getattr(card, "options", {})
    declared = all(isinstance(option, Option) for option in options.values())
    hidden = {"title", "summary", "notes"} | ({"options"} if declared else set())
    values = card.model_dump(mode="json", exclude=hidden)
    put(*(f"  {key:<28} {value}" for key, value in _flat(values)))
    put(*(f"  note: {note}" for note in card.notes))
    if options and declared:
        prefix = {"methods": "method", "datasets": "data", "models": "model"}.get(kind, kind)
        _print_options(prefix, options)


def _print_published(name: str, card: PublishedCard, registry: Registry) -> None:
    from alignbench.leaderboard import terminal

    put(f"published numbers {name}: {card.title}", *filter(None, [card.summary, card.paper]), "")
    put(*terminal.published_lines(card, registry.reward_cards()))
    put(*(f"  disagrees with itself: {x.what}: {' / '.join(x.values)}" for x in card.inconsistencies))
    put(*(f"  note: {note}" for note in card.notes))


def _print_options(prefix: str, options: dict[str, Option]) -> None:
    table = Table("key", "default", "meaning", box=None, pad_edge=False)
    for key, option in options.items():
        allowed = f" [{', '.join(map(str, option.choices))}]" if option.choices else ""
        default = str(option.default) if option.default != "" else "–"
        texts = f"{prefix}.{key}", default, f"{option.doc}{allowed}"
        table.add_row(*(Text(visible(text)) for text in texts))
    Console().print(table)


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
