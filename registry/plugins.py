"""`--plugin FILE.py`: classes that carry their card, registered for this process and named in the record.

A class (or a function, where a kind's target is one) with an attribute `card` is registered under the kind
that its card names; the rest of the card has the keys of the TOML form, without `target`. `--plugin FOLDER`
adds a folder of cards, as `ALIGNBENCH_PATH` does. Under torchrun every rank gets the same arguments and
imports the same file. Imports no torch; the file may.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import ValidationError

from alignbench.errors import UserError, suggest
from alignbench.files import file_sha256
from alignbench.registry.interfaces import CLASS_MEMBERS, check_method, members, require
from alignbench.registry.lookup import KINDS, SINGULAR, PluginFile, Registry, make_importable, module_paths
from alignbench.registry.schema import Card, CodeFile, MethodCard, reasons

KIND_OF = {SINGULAR[kind]: kind for kind in CLASS_MEMBERS}
"""{what a class's card calls its kind: the kind}."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


def load_registry(plugins: Sequence[str | Path | Any] = ()) -> Registry:
    """Return the default registry with what `--plugin` gave: Python files and folders of cards; in Python
    also classes and functions that carry a card.

    Raises:
        UserError: a file that is missing, fails to import, holds nothing, or lacks a required member; the
            message names the file and the reason.
    """
    default = Registry.default()
    roots, files = list(default.roots), []
    for item in plugins:
        if not isinstance(item, str | Path):
            files.append(of_object(item))
            continue
        path = Path(item).expanduser().absolute()
        if path.is_dir():
            make_importable(path)
            roots += [("--plugin", path)] if path not in [root for _, root in roots] else []
        else:
            files.append(read(path))
    return Registry(roots, files)


def read(path: Path) -> PluginFile:
    """Import a plug-in file and check what it brings; raises UserError as `load_registry` does."""
    if not path.is_file() or path.suffix != ".py":
        raise UserError(f"--plugin {path}: not a Python file, nor a folder of cards")
    code = _code_file(path)
    module = _import(path, code.sha256)
    cards: dict[str, dict[str, Card]] = {}
    for thing in list(vars(module).values()):
        if not inspect.isclass(thing) and not inspect.isfunction(thing):
            continue
        if thing.__module__ != module.__name__ or "card" not in vars(thing):
            continue
        kind, name, card = _card(path, module, thing)
        if name in cards.setdefault(kind, {}):
            raise UserError(f"--plugin {path}: two {SINGULAR[kind]} cards are named {name!r}")
        cards[kind][name] = card
    if not cards:
        raise UserError(
            f"--plugin {path}: none of its classes has a card",
            fix='give the class an attribute card = {"kind": "method", "title": …}; see docs/plugins.md',
        )
    return PluginFile(code, cards)


def of_object(thing: Any) -> PluginFile:
    """Register a class or function of this process by card and source file; UserError: it lacks one."""
    name = getattr(thing, "__name__", repr(thing))
    if "card" not in getattr(thing, "__dict__", {}):
        raise UserError(f"{name} carries no card", fix="decorate it, e.g. with @alignbench.reward")
    module = sys.modules.get(thing.__module__)
    source = Path(getattr(module, "__file__", None) or "")
    if module is None or not source.is_file():
        raise UserError(f"{name} lies in no file, so a run could not say what it was", fix="save it in one")
    kind, name, card = _card(source, module, thing)
    return PluginFile(_code_file(source), {kind: {name: card}})


def foreign_code(registry: Registry, used: Iterable[tuple[str, str]]) -> tuple[CodeFile, ...]:
    """Return the plug-in files of this process, and the modules behind cards that are not built in.

    Of an installed plug-in or a folder of cards this is the file a card points at, not what it imports.
    Unknown (kind, name) of the cards that a run depends on are passed over.
    """
    code = {file.code.path: file.code for file in registry.files}
    for kind, name in used:
        location = registry.locations[kind].get(name)
        if location is None or location.origin == "built-in" or location.card is not None:
            continue
        card: Any = registry.card(kind, name)
        paths = module_paths(card.target) if card.target else []
        sources = [source for path in paths for source in (path.with_suffix(".py"), path / "__init__.py")]
        for source in [source for source in sources if source.is_file()][:1]:
            code[str(source)] = _code_file(source)
    return tuple(code[path] for path in sorted(code))


def _code_file(path: Path) -> CodeFile:
    return CodeFile(path=str(path), sha256=f"sha256:{file_sha256(path)}")


def _import(path: Path, digest: str) -> ModuleType:
    """Import a file under a name of its own, so that `module:Class` finds it afterwards."""
    name = f"alignbench_plugin_{re.sub(r'[^0-9A-Za-z_]', '_', path.stem)}_{digest[7:15]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up while it runs
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        frames = traceback.extract_tb(error.__traceback__)
        if isinstance(error, KeyboardInterrupt):
            raise
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        where = f"{path}, line {lines[-1]}" if lines else str(path)
        raise UserError(f"--plugin {where}: cannot be imported: {type(error).__name__}: {error}") from error
    return module


def _card(path: Path, module: ModuleType, thing: Any) -> tuple[str, str, Card]:
    """Check one card and its carrier; return (kind, name, card)."""
    what = f"--plugin {path}: {thing.__name__}"
    if not isinstance(thing.card, dict):
        raise UserError(f"{what}.card is not a dictionary")
    values = dict(thing.card)
    word = values.pop("kind", None)
    if not isinstance(word, str) or word not in KIND_OF:
        raise UserError(
            f"{what}.card: kind is {word!r}.{suggest(str(word), KIND_OF)}",
            fix=f'say "kind": one of {", ".join(KIND_OF)}',
        )
    kind = KIND_OF[word]
    name = values.pop("name", None) or _kebab(thing.__name__)
    if not isinstance(name, str) or not NAME.fullmatch(name):  # it becomes part of folder names
        raise UserError(f"{what}.card: {name!r} is no name", fix="letters, digits, '-', '_', '.' and '+'")
    try:
        card = KINDS[kind].model_validate({**values, "target": f"{module.__name__}:{thing.__name__}"})
    except ValidationError as error:
        raise UserError(f"{what}.card: {'; '.join(reasons(error, 'card'))}") from error
    if isinstance(card, MethodCard):
        check_method(what, thing, card)
    elif inspect.isclass(thing):
        require(what, thing, members(kind, card, built=False))
    return kind, name, card


def _kebab(name: str) -> str:
    """`BestOfN` → `best-of-n`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", name).replace("_", "-").lower()
