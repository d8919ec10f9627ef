"""The product's source as data: modules, imports, sizes, names; and the picture of its packages.

`python -m docs.architecture` prints the figures that `tests/test_architecture.py` bounds and draws
`docs/architecture.svg`.
"""

from __future__ import annotations

import ast
import functools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PRODUCT = ("alignbench", "methods", "evaluators", "registry")
GROUND = {"api", "dealing", "distributed", "errors", "files", "progress", "randomness", "text", ""}
"""Modules that everything may import; the empty name is the package itself."""
FREE = {"cli", "commands", "testing", "__main__"}
"""What may import everything below it."""


@functools.cache
def sources() -> tuple[Path, ...]:
    """Return the product's modules; the links inside `alignbench/` are left out."""
    found = [path for folder in PRODUCT for path in sorted((ROOT / folder).rglob("*.py"))]
    return tuple(path for path in found if not any(parent.is_symlink() for parent in path.parents))


def name_of(path: Path) -> str:
    """Return a module's name below the package: `hub.assets`; the package itself has the empty name."""
    parts = [part for part in path.relative_to(ROOT).with_suffix("").parts if part != "alignbench"]
    return ".".join(part for part in parts if part != "__init__")


def package_of(module: str) -> str:
    return module.split(".")[0]


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def lines_of(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


@functools.cache
def modules() -> frozenset[str]:
    return frozenset(map(name_of, sources()))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, module below the package) of every first-party import, wherever it stands."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ImportFrom) and package_of(node.module or "") == "alignbench":
            base = (node.module or "").removeprefix("alignbench").removeprefix(".")
            for alias in node.names:
                full = f"{base}.{alias.name}".removeprefix(".")
                yield node.lineno, full if full in modules() else base
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if package_of(alias.name) == "alignbench":
                    yield node.lineno, alias.name.removeprefix("alignbench").removeprefix(".")


def absolute_imports(path: Path) -> Iterator[tuple[str, int]]:
    """Yield (top-level module, line) of every other import."""
    for node in ast.walk(tree_of(path)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        for name in names:
            if package_of(name) != "alignbench":
                yield package_of(name), node.lineno  # type: ignore[attr-defined]


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count parameters without `self` and `cls`."""
    arguments = function.args
    names = [item.arg for item in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def classes() -> Iterator[tuple[str, Path]]:
    for path in sources():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef):
                yield node.name, path


def definitions(name: str) -> list[str]:
    """Where a function or class of this name is defined at the top of a module."""
    return [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sources()
        for node in tree_of(path).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name
    ]


def renamed_imports(path: Path) -> list[str]:
    """First-party imports under another name, as `file:line name as other`."""
    found = []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None) or ""
            for alias in node.names:
                first = package_of(module or alias.name) == "alignbench"
                if first and alias.asname:
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno} {alias.name} as {alias.asname}")
    return found


def private_imports(path: Path) -> list[str]:
    """Names with an underscore taken from another module of the product."""
    return [
        f"{path.relative_to(ROOT)}:{node.lineno} {alias.name}"
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ImportFrom) and package_of(node.module or "") == "alignbench"
        for alias in node.names
        if re.match(r"_[a-z]", alias.name) and not alias.name.endswith("__")
    ]


# --- the picture ----------------------------------------------------------------------------------


def package_imports() -> dict[str, set[str]]:
    """{package: packages it imports}, the ground left out."""
    edges: dict[str, set[str]] = {}
    for path in sources():
        importer = package_of(name_of(path))
        if importer in GROUND or importer == "__main__":
            continue
        targets = {package_of(imported) for _, imported in imports(path)}
        edges.setdefault(importer, set()).update(targets - GROUND - {importer})
    return edges


def levels(edges: Mapping[str, set[str]]) -> dict[str, int]:
    """{package: the length of its longest way down}; needs a graph without circles."""

    @functools.cache
    def level(package: str) -> int:
        return max((1 + level(below) for below in edges[package]), default=0)

    return {package: level(package) for package in edges}


def reduced(edges: Mapping[str, set[str]]) -> list[tuple[str, str]]:
    """Leave out the arrows that follow from others."""

    @functools.cache
    def below(package: str) -> frozenset[str]:
        return frozenset(edges[package]).union(*(below(other) for other in edges[package]))

    return sorted(
        (package, target)
        for package, targets in edges.items()
        for target in targets
        if not any(target in below(other) for other in targets - {target})
    )


WIDTH, HEIGHT, GAP, ROW = 112, 32, 44, 92


def centres(rows: list[list[str]]) -> dict[str, tuple[float, int]]:
    """{package: (share of the page's width, row)}, the packages of a row evenly spread."""
    return {
        name: ((column + 0.5) / len(row), index)
        for index, row in enumerate(rows)
        for column, name in enumerate(row)
    }


def untangled(rows: list[list[str]], arrows: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Order each row by where its arrows come from and go to, a few times over."""
    pairs = [*arrows]
    for step in range(24):
        position = centres(rows)

        def wanted(name: str, position: dict[str, tuple[float, int]] = position, step: int = step) -> float:
            ends = [b if a == name else a for a, b in pairs if name in (a, b)]
            ends = [end for end in ends if (position[end][1] < position[name][1]) == (step % 2 == 0)]
            return sum(position[end][0] for end in ends) / len(ends) if ends else position[name][0]

        rows = [sorted(row, key=lambda name: (wanted(name), name)) for row in rows]
    return rows


def svg() -> str:
    """Draw the packages, importers above what they import."""
    edges = package_imports()
    level = levels(edges)
    rows = [sorted(name for name in edges if level[name] == step) for step in range(max(level.values()) + 1)]
    arrows = reduced(edges)
    rows = untangled(rows[::-1], arrows)
    page = max(len(row) for row in rows) * (WIDTH + GAP) + GAP
    corner = {name: (x * page - WIDTH / 2, 24 + y * ROW) for name, (x, y) in centres(rows).items()}
    bottom = 24 + len(rows) * ROW
    parts = [*_arrows(arrows, corner), *_boxes(corner)]
    ground = ", ".join(sorted(GROUND - {""}))
    parts.append(
        f'<text x="{page / 2}" y="{bottom}" text-anchor="middle" fill="#555">'
        f"all may import {ground}; arrows that follow from others are left out</text>"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {page} {bottom + 16}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="14">\n'
        f'<rect width="{page}" height="{bottom + 16}" fill="#ffffff"/>\n'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="#8a8a8a"/></marker></defs>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _arrows(pairs: Iterable[tuple[str, str]], corner: Mapping[str, tuple[float, float]]) -> Iterator[str]:
    for importer, imported in pairs:
        (x1, y1), (x2, y2) = corner[importer], corner[imported]
        yield (
            f'<path d="M{x1 + WIDTH / 2:.0f},{y1 + HEIGHT} C{x1 + WIDTH / 2:.0f},{y1 + HEIGHT + 26} '
            f'{x2 + WIDTH / 2:.0f},{y2 - 26} {x2 + WIDTH / 2:.0f},{y2 - 2}" fill="none" stroke="#8a8a8a" '
            'stroke-width="1.2" marker-end="url(#tip)"/>'
        )


def _boxes(corner: Mapping[str, tuple[float, float]]) -> Iterator[str]:
    for name, (x, y) in corner.items():
        yield (
            f'<rect x="{x:.0f}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="5" fill="#eef3fa" '
            f'stroke="#39608f"/><text x="{x + WIDTH / 2:.0f}" y="{y + 22}" text-anchor="middle" '
            f'fill="#1b2a3a">{name}</text>'
        )


def figures() -> dict[str, object]:
    """The numbers that the tests bound."""
    sizes = {path: lines_of(path) for path in sources()}
    per_package = Counter(str(path.parent.relative_to(ROOT)) for path in sources() if path.stem != "__init__")
    spans = [
        (node.end_lineno - node.lineno + 1, f"{path.relative_to(ROOT)}:{node.name}")
        for path in sources()
        for node in functions(path)
        if node.end_lineno
    ]
    wide = [
        (parameters(node), f"{path.relative_to(ROOT)}:{node.name}")
        for path in sources()
        for node in functions(path)
        if package_of(name_of(path)) != "cli"
    ]
    names = Counter(name for name, _ in classes())
    edges = package_imports()
    tests = [path for path in (ROOT / "tests").rglob("*.py")]
    return {
        "modules in alignbench/": len(list((ROOT / "alignbench").glob("*.py"))),
        "most modules in a package": per_package.most_common(1)[0],
        "product files": len(sizes),
        "product lines": sum(sizes.values()),
        "longest files": [(n, name_of(p)) for p, n in sorted(sizes.items(), key=lambda x: -x[1])[:8]],
        "longest functions": sorted(spans, reverse=True)[:5],
        "most parameters": sorted(wide, reverse=True)[:5],
        "class names used twice": sorted(name for name, count in names.items() if count > 1),
        "renamed imports": [item for path in sources() for item in renamed_imports(path)],
        "private imports": [item for path in sources() for item in private_imports(path)],
        "packages": len(edges),
        "levels": 1 + max(levels(edges).values()),
        "import arrows between packages": sum(map(len, edges.values())),
        "test lines": sum(map(lines_of, tests)),
        "helper lines": sum(lines_of(path) for path in tests if "helpers" in path.parts),
    }


def main() -> None:
    for what, value in figures().items():
        print(f"{what}: {value}")  # noqa: T201
    (ROOT / "docs" / "architecture.svg").write_text(svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
