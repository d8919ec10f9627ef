"""Procedural scenes of coloured shapes, and the closed language that asks for them.

A scene is 20×20 pixels of black with one to four things in it. A thing is one of five shapes, 7×7 pixels in
one flat colour, on a grid of 4 pixels; things keep at least a pixel between them. What is asked for has the
form of GenEval's prompts (arXiv:2310.11513): six tasks, `include` and `exclude`.

All that can be asked for is a short list, so a caption is known from its text.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from alignbench.randomness import generator, permutation

SIZE = 20
"""Side of a scene in pixels."""
SIDE = 7
"""Side of a thing."""
STEP = 4
"""Things stand at multiples of it."""
POSITIONS = (SIZE - SIDE) // STEP + 1
"""Of a thing along each axis."""

COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "purple": (255, 0, 255),
    "white": (255, 255, 255),
}
SHAPES: Mapping[str, tuple[str, ...]] = {
    "square": ("#######",) * SIDE,
    "circle": ("..###..", ".#####.", "#######", "#######", "#######", ".#####.", "..###.."),
    "triangle": ("...#...", "...#...", "..###..", "..###..", ".#####.", ".#####.", "#######"),
    "cross": ("##...##", "###.###", ".#####.", "..###..", ".#####.", "###.###", "##...##"),
    "ring": ("..###..", ".#####.", "##...##", "##...##", "##...##", ".#####.", "..###.."),
}
NUMBERS = ("two", "three", "four")
RELATIONS: Mapping[str, tuple[int, int]] = {
    "left of": (0, -1),
    "right of": (0, 1),
    "above": (-1, 0),
    "below": (1, 0),
}
"""(down, right) of the first thing as seen from the second."""
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
"""GenEval's tags in GenEval's order."""


@dataclass(frozen=True)
class Request:
    """What a caption asks for."""

    tag: str
    """One of TASKS."""
    text: str
    include: tuple[Mapping[str, Any], ...]
    """GenEval's clauses: class, count, perhaps color, perhaps position."""
    exclude: tuple[Mapping[str, Any], ...] = ()

    def metadata(self) -> dict[str, Any]:
        """Return the line of a GenEval prompt file."""
        line: dict[str, Any] = {"tag": self.tag, "include": [dict(clause) for clause in self.include]}
        if self.exclude:
            line["exclude"] = [dict(clause) for clause in self.exclude]
        return {**line, "prompt": self.text}


@dataclass(frozen=True)
class Thing:
    """One thing of a scene."""

    shape: str
    colour: str
    row: int
    """Of its upper edge, in steps of the grid."""
    column: int
    """Of its left edge."""


@dataclass(frozen=True)
class Scene:
    """Things that are what the request asks for, and nothing else."""

    request: Request
    things: tuple[Thing, ...]


# --- the language ---------------------------------------------------------------------------------


@cache
def requests(tag: str) -> tuple[Request, ...]:
    """Return everything a task can ask for, in a fixed order."""
    pairs = list(itertools.permutations(SHAPES, 2))
    if tag == "single_object":
        return tuple(Request(tag, f"a {shape}", (_clause(shape),)) for shape in SHAPES)
    if tag == "two_object":
        return tuple(Request(tag, f"a {a} and a {b}", (_clause(a), _clause(b))) for a, b in pairs)
    if tag == "counting":
        return tuple(_several(shape, count) for shape in SHAPES for count in range(2, 2 + len(NUMBERS)))
    if tag == "colors":
        looks = itertools.product(COLOURS, SHAPES)
        return tuple(Request(tag, f"a {colour} {a}", (_clause(a, colour),)) for colour, a in looks)
    if tag == "position":
        return tuple(
            Request(tag, f"a {a} {relation} a {b}", (_clause(b), {**_clause(a), "position": [relation, 0]}))
            for a, b in pairs
            for relation in RELATIONS
        )
    assert tag == "color_attr", tag
    return tuple(
        Request(tag, f"a {one} {a} and a {other} {b}", (_clause(a, one), _clause(b, other)))
        for a, b in pairs
        for one, other in itertools.permutations(COLOURS, 2)
    )


@cache
def by_text() -> Mapping[str, Request]:
    """Return {caption: request} of all tasks."""
    return {request.text: request for tag in TASKS for request in requests(tag)}


@cache
def words() -> tuple[str, ...]:
    """Return every word of the language, sorted."""
    return tuple(sorted({word for text in by_text() for word in text.split()}))


def plural(shape: str) -> str:
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def _clause(shape: str, colour: str = "") -> dict[str, Any]:
    return {"class": shape, "count": 1, **({"color": colour} if colour else {})}


def _several(shape: str, count: int) -> Request:
    include, exclude = {"class": shape, "count": count}, {"class": shape, "count": count + 1}
    return Request("counting", f"{NUMBERS[count - 2]} {plural(shape)}", (include,), (exclude,))


# --- scenes ---------------------------------------------------------------------------------------


def scene(seed: int, purpose: str, number: int) -> Scene:
    """Return scene `number`; tasks take turns, everything else is drawn at random."""
    numbers = generator(seed, purpose, number)
    choice = requests(TASKS[number % len(TASKS)])
    return arrange(choice[numbers.integers(len(choice))], numbers)


def arrange(request: Request, numbers: np.random.Generator) -> Scene:
    """Place what is asked for; what is left open is drawn at random."""
    kinds = [
        (clause["class"], clause.get("color") or list(COLOURS)[numbers.integers(len(COLOURS))])
        for clause in request.include
        for _ in range(clause["count"])
    ]
    relation = next((clause["position"][0] for clause in request.include if "position" in clause), "")
    while True:
        cells = [divmod(int(cell), POSITIONS) for cell in numbers.integers(POSITIONS**2, size=len(kinds))]
        if _apart(cells) and (not relation or _related(cells[1], cells[0], relation)):
            break
    return Scene(request, tuple(Thing(*kind, *cell) for kind, cell in zip(kinds, cells, strict=True)))


def draw(things: Sequence[Thing]) -> np.ndarray:
    """Return a scene's pixels, [20, 20, 3] uint8 RGB."""
    pixels = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)
    for thing in things:
        top, left = STEP * thing.row, STEP * thing.column
        pixels[top : top + SIDE, left : left + SIDE][mask(thing.shape)] = COLOURS[thing.colour]
    return pixels


@cache
def mask(shape: str) -> np.ndarray:
    """Return which pixels a shape covers, [7, 7] bool."""
    return np.array([[pixel == "#" for pixel in row] for row in SHAPES[shape]])


def prompts(seed: int, purpose: str, each: int) -> list[Request]:
    """Return `each` requests of every task: all that it can ask for in random order, again and again.

    The tasks take turns, so that the first n prompts are a fair choice too.
    """
    chosen = []
    for tag in TASKS:
        pool = requests(tag)
        orders = (permutation(seed, f"{purpose}/{tag}", turn, len(pool)) for turn in itertools.count())
        positions = itertools.islice(itertools.chain.from_iterable(orders), each)
        chosen.append([pool[position] for position in positions])
    return list(itertools.chain.from_iterable(zip(*chosen, strict=True)))


def _apart(cells: Sequence[tuple[int, int]]) -> bool:
    """Whether no two things overlap or touch."""
    pairs = itertools.combinations(cells, 2)
    return all(max(abs(a - c), abs(b - d)) * STEP > SIDE for (a, b), (c, d) in pairs)


def _related(cell: tuple[int, int], other: tuple[int, int], relation: str) -> bool:
    """Whether the first cell lies so from the second, by more than it lies to the side."""
    (down, right), towards = (cell[0] - other[0], cell[1] - other[1]), RELATIONS[relation]
    along = down * towards[0] + right * towards[1]
    across = abs(down * towards[1]) + abs(right * towards[0])
    return along * STEP > SIDE and along > across
