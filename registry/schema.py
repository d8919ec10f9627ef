"""The form of every card: pydantic models, one per kind. A card is one TOML file; its name is its file name.

Cards hold facts and names only. Reading them imports no implementation.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from alignbench.text import LONGEST, cut, one_line, plain_line

Scalar = bool | int | float | str
Target = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
"""`module:attribute` of the implementation."""
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$", max_length=200)]
"""A name that is also a safe file name."""
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{8,64}$")]


class TomlTable(BaseModel):
    """A TOML table: unknown keys are errors, values are not coerced from strings."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class JsonTable(TomlTable):
    """A JSON object of a record: nothing is coerced either, NaN and infinity are refused."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class CodeFile(JsonTable):
    """A file outside alignbench that a run's code comes from."""

    path: str
    sha256: Digest


def reasons(error: ValidationError, whole: str) -> list[str]:
    """Say each thing that does not fit: where, and why; `whole` is said where it is no single key."""
    places = ["".join(f".{cut(str(key), 60)}" for key in item["loc"])[1:] for item in error.errors()]
    said = [f"{place or f'({whole})'}: {x['msg']}" for place, x in zip(places, error.errors(), strict=True)]
    return [cut(one_line(text), LONGEST) for text in said]  # keys and values may be anything


Title = Annotated[str, AfterValidator(plain_line)]
"""How tables name a thing."""


class Card(TomlTable):
    """What all cards have in common."""

    title: Title
    summary: str = ""
    """One sentence."""
    paper: str = ""
    """arXiv id, e.g. `arXiv:2512.19680`."""
    licence: str = ""
    notes: list[str] = []
    """What a reader of `alignbench show` should know."""


class Option(TomlTable):
    """A key that `--set` can change."""

    default: Scalar
    doc: str
    choices: list[Scalar] = []
    minimum: float | None = None
    maximum: float | None = None
    rare: bool = False
    """A configuration holds it only if it was given, so that plans from before the option stay the same."""

    def check(self, value: Scalar) -> Scalar:
        """Return the value in the option's type, or raise ValueError saying what is allowed."""
        wanted = type(self.default)
        if wanted is float and type(value) is int:
            value = float(value)
        if type(value) is not wanted:  # True is an int too
            raise ValueError(f"{value!r} is not {_TYPE_NAMES[wanted]}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{value!r} is not a finite number")
        if self.choices and value not in self.choices:
            raise ValueError(f"{value!r} is not one of {', '.join(map(str, self.choices))}")
        if self.minimum is not None and isinstance(value, int | float) and value < self.minimum:
            raise ValueError(f"{value!r} is below {self.minimum:g}")
        if self.maximum is not None and isinstance(value, int | float) and value > self.maximum:
            raise ValueError(f"{value!r} is above {self.maximum:g}")
        return value

    def parse(self, text: str) -> Scalar:
        """Read a value as written on the command line or in a reward; ValueError as for `check`."""
        value: Scalar = text
        kind = type(self.default)
        with contextlib.suppress(ValueError):  # what cannot be read is refused below, as text
            if kind is bool:
                value = {"true": True, "false": False}.get(text.lower(), text)
            elif kind is not str:
                value = kind(text)
        return self.check(value)

    @model_validator(mode="after")
    def _default_is_allowed(self) -> Option:
        self.check(self.default)
        return self


_TYPE_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


# --- models ---------------------------------------------------------------------------------------
class PolicyShape(TomlTable):
    """Geometry of the autoregressive transformer."""

    dim: int
    layers: int
    heads: int
    ffn_hidden: int
    vocab_size: int
    tokens: int
    """Image tokens per image, T."""
    condition_tokens: int = 1
    caption_dim: int | None = None
    """Width of the text features; only for text-conditioned models."""
    text_vocab: int | None = None
    """Size of the text vocabulary; only where the policy reads prompts by itself."""
    norm_eps: float = 1e-5
    rope_base: float = 10000.0
    dropout: float = 0.1
    """Token, residual and feed-forward dropout of the training recipe."""
    condition_dropout: float = 0.1
    """Share of conditions replaced by the null condition in training."""
    parameters: int
    """Trainable parameters; a test counts them."""


class TokenizerShape(TomlTable):
    """Geometry of the convolutional VQ tokenizer."""

    base_channels: int
    multipliers: list[int]
    res_blocks: int = 2
    z_channels: int
    codebook_size: int
    code_dim: int
    l2_norm: bool = True
    parameters: int

    @property
    def downsample(self) -> int:
        return int(2 ** (len(self.multipliers) - 1))


def stays_inside(path: str) -> str:
    """Return a path that stays under the folder it is relative to; raises ValueError: it may not."""
    if path.startswith(("/", "~")) or "\\" in path or ".." in path.split("/"):
        raise ValueError(f"{path!r} leads out of its folder")
    return path


InnerPath = Annotated[str, AfterValidator(stays_inside)]
"""Of a file in a repository or folder; the file is written under it."""


class WeightFile(TomlTable):
    """One file of weights: on the hub, or shipped inside the package."""

    role: Literal["policy", "tokenizer", "text"]
    repo: str = ""
    """Hub repository; empty for files without a public release."""
    revision: str = "main"
    path: InnerPath
    """File name in the repository, or relative to the package for shipped files."""
    shipped: bool = False
    size: int | None = None
    """Bytes."""
    sha256: str | None = None
    """Hex digest; None means that it is recorded on the first download."""


class TextSpec(TomlTable):
    """Text encoder of a text-conditioned model, where it is a network of its own.

    The target is called as `target(path, digest=SHA256, slots=S, width=C, device=…)`, with S and C from the
    policy's shape, and returns an `api.TextEncoder`.
    """

    target: Target
    asset: str = ""
    """Asset card of its files; empty: the model's own file of role `text`."""
    parameters: int = 0
    """Of the network, for the estimate of memory, in bf16; 0: too small to count."""
    packages: list[str] = []
    """Modules it imports that a plain installation lacks."""
    extra: str = ""
    """The extra that brings them."""


class ModelCard(Card):
    """A pretrained generator.

    The target is called as `target(card, files, seed=…, device=…, **options)` with every option of the card.
    """

    family: str
    target: Target | None = None
    """`build` function of the backbone; None: this version has no backbone for the family."""
    condition: Literal["class", "text"]
    image_size: int
    num_classes: int | None = None
    policy: PolicyShape
    tokenizer: TokenizerShape
    text: TextSpec | None = None
    """None: class-conditional, or the policy reads text by itself."""
    files: list[WeightFile] = []
    roles: list[Literal["policy", "tokenizer", "text"]] = ["policy", "tokenizer"]
    """Files it cannot be built without; a tokenizer may lie in the policy's."""
    options: dict[str, Option] = {}
    """Set as `model.KEY`, by recipes too."""
    dataset: str
    """Dataset card the model is post-trained on by default."""
    protocol: str
    """Protocol card the model is evaluated with by default."""
    reconstruction: str = ""
    """Protocol card its tokenizer is scored by; empty: none."""
    lora_targets: dict[str, tuple[int, int]] = {}
    """{last part of a linear layer's name: (inputs, outputs)} of all that LoRA may adapt: each stands once in
    every one of `policy.layers`, and nowhere else in the policy. Empty: it takes no adapter."""

    @model_validator(mode="after")
    def _grid_matches(self) -> ModelCard:
        side = self.image_size // self.tokenizer.downsample
        if side * side != self.policy.tokens:
            raise ValueError(
                f"policy.tokens = {self.policy.tokens} but {self.image_size} px / "
                f"{self.tokenizer.downsample} gives a {side}×{side} grid"
            )
        return self


# --- methods, rewards, recipes --------------------------------------------------------------------
class MethodCard(Card):
    """A post-training method."""

    target: Target
    updates: Literal["policy", "decoder"]
    needs: list[Literal["images", "rewards", "reference", "others"]] = []
    """`others`: beside each image's condition that of another image of the step."""
    conditions: list[Literal["class", "text"]] = ["class", "text"]
    options: dict[str, Option] = {}
    group_option: str = ""
    """Option that says how many sequences are drawn per image; empty: one."""
    update_rows: int | str = "image"
    """Rows of the update's forward, for the plan's memory estimate: one an `image`, every `sequence` of its
    group, or for each image a number, or an option of the method that holds it."""
    reward_options: list[str] = []
    """Options whose value names a reward card."""
    reward_switches: list[str] = []
    """Options any of which at 0 leaves these rewards out: they are then neither loaded nor computed. One that
    is called as one of these and `_weight` leaves out that one alone."""

    def trains_on_rewards(self, options: Mapping[str, Scalar]) -> bool:
        """Whether no switch leaves out all rewards."""
        own = [f"{name}_weight" for name in self.reward_options]
        return all(options[switch] != 0 for switch in self.reward_switches if switch not in own)

    def rewards_in_use(self, options: Mapping[str, Scalar]) -> dict[str, str]:
        """{option: specifications} of the rewards that options name and give a weight."""
        used = self.reward_options if self.trains_on_rewards(options) else []
        texts = {name: str(options.get(name, self.options[name].default)) for name in used}
        off = {
            name for name in used if (own := f"{name}_weight") in self.reward_switches and not options[own]
        }
        return {name: text for name, text in texts.items() if text not in ("", "none") and name not in off}

    @model_validator(mode="after")
    def _check_rows(self) -> MethodCard:
        rows = self.update_rows
        if rows not in ("image", "sequence", *self.options) and not (isinstance(rows, int) and rows > 0):
            raise ValueError(f"update_rows is {rows!r}: image, sequence, a number or an option")
        return self


class RewardFile(TomlTable):
    """What a reward reads and pip does not bring; in every text `{option}` stands for the option's value."""

    asset: str = ""
    """Asset card that says all the rest."""
    repo: str = ""
    """Hub repository; empty: a file from `url`."""
    revision: str = "main"
    files: list[InnerPath] = []
    """What is needed of the repository; `a|b` means either."""
    file: InnerPath = "."
    """Name of a plain file; `.`: the repository."""
    url: str = ""
    option: str = ""
    """Option of the card that names a path instead."""
    when: dict[str, Scalar] = {}
    """Option values with which alone it is needed."""
    size: str = ""
    """For people."""

    def needed(self, options: Mapping[str, Scalar]) -> bool:
        """Whether it is read under these values of the card's options."""
        return all(options[key] == value for key, value in self.when.items())


class RewardCard(Card):
    """A score of decoded images that training can use.

    The target is called as `target(device, **options)`, with every option of the card, and returns an
    `api.Reward` (scope `distance`: an `api.Distance` too) that gives raw scores.
    """

    target: Target
    networks: list[str] = []
    """Frozen networks inside; a metric computed with one of them is marked in tables. `{option}` stands for
    the option's value."""
    direction: Literal["higher", "lower"]
    differentiable: bool
    scope: Literal["distance", "image", "set"]
    """`distance` compares with the reference image; `image` looks at the image, and at what it `needs`; `set`
    credits each image with what it does to all images of a step, and returns what docs/adding/set-reward.md
    describes instead."""
    needs: list[Literal["text", "label", "metadata"]] = []
    """What a request must bring beside the image; `metadata`: the whole entry of a prompt file."""
    options: dict[str, Option] = {}
    """Changed inside the specification: `clip-score(model=openai/clip-vit-base-patch32)`."""
    batch: int = Field(default=64, ge=1)
    """Images scored at once unless the specification says `batch=`; bounds memory."""
    packages: list[str] = []
    """Modules it imports that a plain installation lacks."""
    extra: str = ""
    """The extra that brings them: `pip install 'alignbench[EXTRA]'`."""
    files: list[RewardFile] = []
    """Files it needs that pip does not bring; looked for before a run starts, and fetched by its name."""
    min_size: int = 1
    """Smallest image side it accepts."""
    num_classes: int | None = None
    """Classes whose labels it understands; None: any, or none are asked for."""

    @model_validator(mode="after")
    def _networks_name_options(self) -> RewardCard:
        defaults = {key: option.default for key, option in self.options.items()}
        for name in self.networks:
            try:
                name.format_map(defaults)
            except (KeyError, ValueError) as error:
                raise ValueError(f"networks: {name!r} names no option of the card") from error
        return self


class RecipeCard(Card):
    """Hyperparameters of one method on one model."""

    method: str
    models: list[str]
    source: str
    """Where the values come from: table, script, sweep."""
    values: dict[str, Scalar]
    """Dotted keys as `--set` takes them, e.g. `method.group_size`."""
    default: bool = True
    """False: used only when `--recipe` names it. Each method and model has one default recipe at most."""
    data: str = ""
    """Data set card, unless `--data` names one; empty: the model's."""


# --- data and evaluation --------------------------------------------------------------------------
class DatasetCard(Card):
    """Training or reference images, or what images are generated from."""

    target: Target
    condition: Literal["class", "text"]
    splits: list[str]
    train_split: str
    options: dict[str, Option] = {}
    images: bool = True
    """False: conditions alone, for methods that need no images."""
    leaderboard: bool = True
    """False for synthetic data: its runs never reach a leaderboard."""
    classes: Target | None = None
    """Called as `classes(split=, num_classes=, options=)`; lists the classes as the data names them, by id,
    without reading an image. Plans show them."""
    class_names: list[str] | Target = []
    """What each class shows, in order of the id and in words that a text model knows, for rewards that read a
    text; or where such a list is. Empty: rewards of that kind need captions."""
    packages: list[str] = []
    """Modules it imports that a plain installation lacks."""
    extra: str = ""
    """The extra that brings them: `pip install 'alignbench[EXTRA]'`."""
