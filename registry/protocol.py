"""Cards of protocols, evaluators and assets; the identity of a protocol."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import asdict
from fnmatch import fnmatchcase
from operator import attrgetter
from typing import Any, Literal

from pydantic import field_serializer, field_validator, model_validator

from alignbench.api import Sampling
from alignbench.errors import UserError, suggest
from alignbench.files import digest_of
from alignbench.registry.schema import (
    Card,
    InnerPath,
    JsonTable,
    Name,
    Option,
    Scalar,
    Target,
    Title,
    TomlTable,
)


def protocol_digest(card: ProtocolCard, assets: Mapping[str, str] | None = None) -> str:
    """Identity of a protocol: all that must be equal for two rows to be comparable.

    Titles and notes do not count, nor do settings and seeds, which each row carries itself.

    Args:
        assets: {asset: SHA-256} of files used that are not, or cannot be known to be, the ones on the cards.
    """
    content = {key: value for key, value in protocol_content(card).items() if key not in _WORDS}
    if assets:
        content["assets"] = dict(assets)
    return f"sha256:{digest_of(content)}"


def protocol_content(card: ProtocolCard) -> dict[str, Any]:
    """Return a protocol as plain data; fields that came later only where they are used: digests stay."""
    content = card.model_dump(mode="json")
    for name in _LATER_FIELDS:
        if content[name] == ProtocolCard.model_fields[name].default:
            del content[name]
    if content["reference"]:
        content["reference"] = {key: value for key, value in content["reference"].items() if value}
    return content


_WORDS = {"title", "summary", "notes", "licence", "paper", "settings", "seeds"}
_LATER_FIELDS = ("task", "rounding", "prompts", "images_per_prompt", "options")


def resolve_protocol(card: ProtocolCard, options: dict[str, Any]) -> ProtocolCard:
    """Apply `protocol.*`; raises UserError: a setting it lacks, or seeds that are no whole numbers."""
    changes: dict[str, Any] = {key: options[key] for key in ("samples", "batch") if options.get(key)}
    if options["seeds"]:
        where = f"protocol.seeds: {options['seeds']!r}"
        try:
            changes["seeds"] = [int(text) for text in str(options["seeds"]).split(",")]
        except ValueError:
            raise UserError(f"{where} is not of the form 0,1,2") from None
        if len(set(changes["seeds"])) < len(changes["seeds"]):
            raise UserError(f"{where} names a seed twice")
    if options["settings"]:
        chosen = {}
        for name in str(options["settings"]).split(","):
            if name not in card.settings:
                what = f"protocol.settings: no setting named {name!r}.{suggest(name, card.settings)}"
                raise UserError(what, fix=f"it has {', '.join(card.settings)}")
            chosen[name] = card.settings[name]
        changes["settings"] = chosen
    if options.get("evaluators"):
        more = [name.strip() for name in str(options["evaluators"]).split(",")]
        changes["evaluators"] = list(dict.fromkeys([*card.evaluators, *more]))
    return card.model_copy(update=changes)


class Setting(JsonTable):
    """One way of sampling inside a protocol; the fields of `api.Sampling`.

    All numbers are None where nothing is sampled: images made elsewhere, and reconstructions.
    """

    name: Name
    title: Title
    temperature: float | None
    top_k: int | None
    top_p: float | None
    cfg_scale: float | None
    cfg_interval: int | None

    @classmethod
    def unsampled(cls, name: str, title: str) -> Setting:
        return cls(name=name, title=title, **dict.fromkeys(_PLAIN))

    def sampling(self) -> Sampling:
        """Return how tokens are drawn, where they are."""
        return Sampling(**self.model_dump(include=set(_PLAIN)))

    @property
    def identity(self) -> Hashable:
        """What makes two settings the same: their numbers, as names and titles may change with the card.

        Where nothing was sampled there are none, and the name decides.
        """
        numbers = attrgetter(*_PLAIN)(self)
        return self.name if set(numbers) == {None} else numbers


_PLAIN = {key: value for key, value in asdict(Sampling()).items() if key != "greedy"}


class AssetCard(Card):
    """Something from outside that evaluators read: a network's weights, reference statistics, prompts.

    It is looked for at the path in `--set assets.NAME=PATH`, in the package if shipped, in
    `$ALIGNBENCH_CACHE/assets/NAME/`, in the places other programs keep it, and in the Hugging Face cache.
    """

    what: Literal["network", "reference", "prompts", "detections"]
    file: InnerPath
    """File name; `.` for a whole repository in the hub's folder form."""
    url: str = ""
    """Where it can be downloaded; empty: from the hub, or nowhere."""
    repo: str = ""
    """Hub repository; empty: from `url`, or nowhere."""
    revision: str = "main"
    kind: Literal["model", "dataset"] = "model"
    """Of the hub repository."""
    files: list[InnerPath] = []
    """What a repository must hold; `a|b` means either. Only with `file = "."`."""
    places: list[str] = []
    """Where other programs keep it, e.g. `$TORCH_HOME/hub/checkpoints/NAME`."""
    shipped: bool = False
    """It lies inside the package, at `file`."""
    size: int | None = None
    """Bytes."""
    sha256: str | None = None
    """Hex digest of the file; None: not known to the authors, recorded on first use."""


class ReferenceSpec(TomlTable):
    """What samples are compared with: images of a data set, or a statistics file."""

    dataset: str = ""
    split: str = ""
    statistics: str = ""
    """Asset card of an ADM-form npz file; instead of `dataset`."""
    image_size: int = 0
    """Side of the images in that file; 0: the protocol's. Another one fits evaluators that resize for
    themselves."""

    @model_validator(mode="after")
    def _names_one(self) -> ReferenceSpec:
        if bool(self.dataset) == bool(self.statistics) or bool(self.dataset) != bool(self.split):
            raise ValueError("give dataset and split, or statistics")
        return self


class ProtocolCard(Card):
    """Everything that makes two numbers comparable; its digest is printed beside each number."""

    version: int
    task: Literal["generation", "reconstruction"] = "generation"
    """`reconstruction`: images of the reference data set go through the tokenizer and back."""
    condition: Literal["class", "text"]
    image_size: int
    """Side the samples are scored at; larger generations are resized to it."""
    resize: Literal["none", "bicubic"] = "none"
    """`bicubic`: on the float image, no antialias, before clamping (LlamaGen)."""
    rounding: Literal["truncate-128", "truncate-255"] = "truncate-128"
    """From float pixels x in [-1, 1] to bytes, clamped: trunc(127.5·x + 128) as LlamaGen and ADM do, or
    trunc(255·(x + 1)/2) as AR-GRPO and Janus do."""
    samples: int
    """Images per sampling seed."""
    seeds: list[int]
    """Sampling seeds; each gives its own set of images and its own number."""
    labels: Literal["uniform", "balanced", "prompts"]
    """`uniform`: drawn at random with replacement; `balanced`: the same number for each class; `prompts`: no
    classes, each prompt is used `images_per_prompt` times."""
    prompts: str = ""
    """Asset card of the prompt file."""
    images_per_prompt: int = 1
    precision: Literal["fp32", "bf16"]
    """Arithmetic of the policy while sampling."""
    batch: int
    """Images generated together; fixed because bf16 rounding depends on it."""
    evaluators: list[str]
    options: dict[str, dict[str, Scalar]] = {}
    """{evaluator: {option: value}} where the evaluator card's default is not meant."""
    rank_by: str
    """Metric that orders the table."""
    settings: dict[str, Setting]
    """By name; a card leaves out the name, and numbers that change nothing."""
    reference: ReferenceSpec | None = None

    def gives(self, need: str) -> bool:
        """Whether the images come with what an evaluator's card says that it `needs`."""
        given = {"reference": self.reference, "prompts": self.prompts, "originals": self.task != "generation"}
        return bool(given[need])

    @field_validator("settings", mode="before")
    @classmethod
    def _named(cls, settings: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        if any("name" in values for values in settings.values()):
            raise ValueError("a setting is named by its key")
        return {name: {"name": name, **_PLAIN, **values} for name, values in settings.items()}

    @field_serializer("settings")
    def _as_on_the_card(self, settings: dict[str, Setting]) -> dict[str, dict[str, Any]]:
        return {name: setting.model_dump(exclude={"name"}) for name, setting in settings.items()}


class MetricFact(TomlTable):
    """How a metric is shown and ranked."""

    title: str
    direction: Literal["higher", "lower"]
    digits: int
    networks: list[str] = []
    """Frozen networks behind it."""
    relatives: list[str] = []
    """Patterns of names of networks that were trained like these."""
    features: int = 0
    """Dimensions whose covariance is in it: with fewer images it is singular; 0: there is none."""
    detail: bool = False
    """Shown in a run's own report, not as a column of leaderboards."""
    column: str = ""
    """The metric is the plain mean of this column of the evaluator's rows, so that two runs can be compared
    image by image; empty: it is not."""
    per: Literal["image", "prompt"] = "image"
    """What is independent in that mean: images of one prompt are not."""
    doc: str = ""

    def was_reward(self, rewards: Iterable[str]) -> bool:
        """Whether one of these networks of training rewards is behind the metric, or akin to one that is."""
        names = [*self.networks, *self.relatives]
        return any(fnmatchcase(reward, name) for reward in rewards for name in names)


class ColumnFact(TomlTable):
    """What a column of rows that no metric is the mean of says of an image."""

    title: str
    direction: Literal["higher", "lower", ""] = ""
    """Empty: neither is better."""
    doc: str = ""


class EvaluatorCard(Card):
    """A program that scores an image set.

    The target is called as `target(card, options=…, assets=…, device=…)` and returns an `api.Evaluator`.
    """

    target: Target
    needs: list[Literal["reference", "prompts", "originals"]] = []
    """What an image set must come with."""
    assets: list[str] = []
    """Asset cards it reads."""
    parts: dict[str, Target] = {}
    """Exchangeable parts, e.g. the detector of GenEval: another card may name another one."""
    packages: list[str] = []
    """Modules it imports that a plain installation lacks."""
    extra: str = ""
    """The extra that brings them: `pip install 'alignbench[EXTRA]'`."""
    min_images: dict[str, int] = {}
    """{option: n}: with fewer than the option's value + n images nothing can be estimated."""
    keep: list[str] = []
    """Columns that stay in the run folder after scoring, besides those that metrics are means of."""
    columns: dict[str, ColumnFact] = {}
    """What they mean, for the log of samples."""
    row_bytes: int = 0
    """Disk space that one image's rows take until they are scored; the plan's estimate counts it."""
    metrics: dict[str, MetricFact]
    options: dict[str, Option] = {}

    @property
    def kept(self) -> list[str]:
        """Columns that stay."""
        return sorted({fact.column for fact in self.metrics.values() if fact.column}.union(self.keep))
