"""Cards of tables: sweeps with the claims they are to decide, and numbers printed in papers."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from alignbench.registry.schema import Card, Scalar, TomlTable


class SweepRow(TomlTable):
    """One line of a sweep's plan: a named change of its base, and its own part of the grid."""

    title: str
    method: str = ""
    """Instead of the sweep's."""
    recipe: str = ""
    """Instead of the sweep's."""
    values: dict[str, Scalar] = {}
    grid: dict[str, list[Scalar]] = {}
    """{dotted key: values to try}; crossed with the sweep's grid."""


class Claim(TomlTable):
    """What a paper says of two configurations of a sweep, to be held against what is measured."""

    better: str
    """Title of a configuration, or `base`: the untouched model."""
    than: str
    metric: str
    setting: str = ""
    """Empty: the sweep's."""
    printed: str
    """The paper's numbers and where they stand."""


class SweepCard(Card):
    """Ordinary runs that belong in one table: rows × grid × seeds."""

    model: str
    method: str = ""
    """May be left out if every row or the grid names one."""
    recipe: str = ""
    """Empty: the one for method and model."""
    data: str = ""
    """Empty: the model's."""
    protocol: str = ""
    """Empty: the model's. Tuning belongs on a validation split."""
    source: str
    """Where the design comes from: table, figure, own choice."""
    metric: str
    """What the best configuration is chosen by."""
    setting: str
    """Sampling setting of the protocol that the table shows."""
    choose: Literal["all", "row"] = "all"
    """`all`: one best configuration; `row`: one for each row, as for tuning several methods."""
    seeds: list[int] = Field(min_length=1)
    """Training seeds."""
    values: dict[str, Scalar] = {}
    """Dotted keys as `--set` takes them, the same for every run."""
    grid: dict[str, list[Scalar]] = {}
    """{dotted key, `method` or `recipe`: values to try}."""
    rows: list[SweepRow] = []
    """Empty: one row without changes."""
    columns: list[str] = []
    """Metrics that the table shows, in this order; empty: all that are measured."""
    groups: dict[str, str] = {}
    """{title: setting} of groups of columns as a paper prints them; empty: one group, at `setting`."""
    claims: list[Claim] = []


class PublishedRow(TomlTable):
    """One printed row."""

    method: str
    values: dict[str, float]
    model: str = ""
    note: str = ""
    run: str = ""
    """Method card that makes this row here, or `base`; empty: there is none."""
    recipe: str = ""
    """Empty: the one for method and model."""
    changed: dict[str, Scalar] = {}
    """What `--set` changes in it."""


class Counterpart(TomlTable):
    """How a printed table is measured here."""

    protocol: str
    at: dict[str, str]
    """{model: sampling setting of the protocol}; a model that is left out cannot be compared."""
    metrics: dict[str, str]
    """{printed name: metric}."""
    scale: dict[str, float] = {}
    """{printed name: factor from the printed unit to ours}; left out: 1."""
    differences: list[str] = []
    """What the protocols do differently, or what the paper does not state."""


class PublishedTable(TomlTable):
    """One table of a paper as printed."""

    id: str
    caption: str
    setting: dict[str, Any]
    rows: list[PublishedRow]
    measured: Counterpart | None = None
    """None: nothing here measures it."""

    @property
    def stated(self) -> str:
        """The setting in words, as the paper states it."""
        shown = (f"{k} = {format(v, 'g' if isinstance(v, float) else '')}" for k, v in self.setting.items())
        return ", ".join(shown) or "none"


class Inconsistency(TomlTable):
    """Two places of one paper that disagree."""

    what: str
    values: list[str]


class PublishedCard(Card):
    """Numbers printed in a paper. Shown beside ours, never ranked with them."""

    tables: list[PublishedTable]
    rewards: dict[str, list[str]] = {}
    """{`run` of a row, or its method: reward cards that trained it}; left out: not known."""
    inconsistencies: list[Inconsistency] = []
