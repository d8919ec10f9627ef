"""The value types and protocols that methods, backbones, evaluators and the driver share.

Nothing here imports torch at run time, so that planning stays light. Shapes: B images, G group size (samples
per image), N sequences, T image tokens, V codes in the vocabulary, D code width, S condition tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn
    from typing_extensions import Self

Updates = Literal["policy", "decoder"]
"""Which module a method trains: the token policy or the tokenizer's decoder."""


class Condition:
    """What images are generated from: a dataclass of tensors, and tuples that may be empty, a row each."""

    texts: tuple[str, ...]
    """The caption behind each row, for rewards that read one; empty where there is none."""

    def __len__(self) -> int:
        return len(next(iter(vars(self).values())))

    def select(self, rows: slice) -> Self:
        return self._map(lambda part: part[rows])

    def repeat(self, times: int) -> Self:
        """Repeat every row `times` times (image-major order: a a a b b b)."""

        def repeated(part: Any) -> Any:
            each = isinstance(part, tuple)
            return tuple(x for x in part for _ in range(times)) if each else part.repeat_interleave(times, 0)

        return self._map(repeated)

    def join(self, other: Self) -> Self:
        """Put the rows of another batch below these; tensors take its dtypes."""
        import torch

        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return type(self)(
            *(a + b if isinstance(a, tuple) else torch.cat([a.to(b.dtype), b]) for a, b in pairs)
        )

    def to(self, device: torch.device) -> Self:
        return self._map(lambda part: part if isinstance(part, tuple) else part.to(device))

    def _map(self, change: Callable[[Any], Any]) -> Self:
        return type(self)(*(change(part) for part in vars(self).values()))


@dataclass(frozen=True)
class ClassLabels(Condition):
    """Class ids of a class-conditional generator; without texts."""

    ids: Tensor
    """[B] int64."""
    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class TextFeatures(Condition):
    """Left-padded text-encoder features of captions."""

    features: Tensor
    """[B, S, C] float, zero where masked."""
    mask: Tensor
    """[B, S] bool, True where a real token stands."""
    texts: tuple[str, ...] = ()
    """The captions as they came, [B]; may be empty."""


@dataclass(frozen=True)
class Batch:
    """Training images with their conditions."""

    index: Tensor
    """[B] int64, number of the sample in the run's stream: the key of all its randomness."""
    condition: Condition
    images: Tensor
    """[B, 3, H, W] float32 in [-1, 1]; [B, 3, 0, 0] for methods whose card needs no images."""
    prompts: tuple[Prompt, ...] = ()
    """[B] whole entries of data set `prompts`; empty with other data."""
    mismatched: Condition | None = None
    """[B] of the next image in the step each, of the shapes of `condition`; None: the card needs none."""

    def __len__(self) -> int:
        return self.index.shape[0]

    def select(self, rows: slice) -> Batch:
        own, other = self.condition.select(rows), self.mismatched and self.mismatched.select(rows)
        return Batch(self.index[rows], own, self.images[rows], self.prompts[rows], other)

    def split(self, size: int) -> Iterator[Batch]:
        """Cut into consecutive pieces of at most `size` images."""
        yield from (self.select(slice(start, start + size)) for start in range(0, len(self), size))

    def to(self, device: torch.device) -> Batch:
        index, images = (part.to(device, non_blocking=True) for part in (self.index, self.images))
        mismatched = self.mismatched and self.mismatched.to(device)
        return Batch(index, self.condition.to(device), images, self.prompts, mismatched)


@dataclass(frozen=True)
class Loss:
    """A mean over the images of one micro-batch."""

    value: Tensor
    """Scalar, differentiable with respect to what the method trains."""
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    """Detached scalars for the log, averaged over the micro-batches of a step by image count."""


@dataclass(frozen=True)
class Collected:
    """What a method gathered from one micro-batch, without a graph; metrics as those of `Loss`."""

    experience: object
    """Whatever the method's own `loss` wants back."""
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    images: int = 0
    """Images read, B."""
    sequences: int = 0
    """Token sequences drawn, usually B·G."""
    tokens: int = 0
    """Image tokens drawn one after another (free-running); 0 for parallel, teacher-forced draws."""
    reward_calls: Mapping[str, int] = field(default_factory=dict)
    reward_failures: Mapping[str, int] = field(default_factory=dict)
    """Images scored, and how many of them got no valid score, by reward name."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn. Order: guidance, temperature, top-k, top-p, inverse CDF."""

    temperature: float = 1.0
    """Logits are divided by it; must be above 0."""
    top_k: int = 0
    """Keep the k most likely codes (ties kept); 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of codes whose mass exceeds it; 1 keeps all."""
    cfg_scale: float = 1.0
    """Classifier-free guidance null + s·(cond − null); 1 switches it off."""
    cfg_interval: int = -1
    """Tokens 0 … interval+1 are guided, later ones are not (LlamaGen's rule); -1 guides all."""
    greedy: bool = False
    """Take the most likely code and ignore the random numbers."""


@dataclass(frozen=True)
class Rollout:
    """Freely generated sequences."""

    tokens: Tensor
    """[N, T] int64."""
    logprobs: Tensor
    """[N, T] float32, log-probability of each token under the distribution it was drawn from."""


@runtime_checkable
class Tokenizer(Protocol):
    """A frozen VQ tokenizer: pixels to codes and back."""

    num_codes: int
    code_dim: int
    downsample: int

    def encode(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] → [B, T] int64 codes, raster order."""

    def decode(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """[N, T] codes → [N, 3, H, W] float32, about [-1, 1], not clamped."""

    def codebook(self) -> Tensor:
        """[V, D] float32 rows as the decoder sees them (unit length where the tokenizer normalises)."""

    def trainable_decoder(self) -> nn.Module:
        """What tokenizer-decoder post-training updates: all that turns code vectors into pixels."""

    def decode_embeddings(self, embeddings: Tensor, grid: tuple[int, int]) -> Tensor:
        """[N, T, D] code vectors → [N, 3, H, W]; differentiable with respect to its input."""


class TextEncoder(Protocol):
    """A frozen network that turns captions into features."""

    identity: str
    """Digest of all that decides the features."""

    def encode(self, texts: Sequence[str]) -> TextFeatures:
        """Return left-padded features on the encoder's device; a row depends on its text alone."""


@runtime_checkable
class Backbone(Protocol):
    """An autoregressive image generator: a policy over the codes of a tokenizer."""

    tokenizer: Tokenizer
    policy: nn.Module
    """The trainable network. Its forward is `(condition, context) → logits`."""
    num_tokens: int
    """T."""
    grid: tuple[int, int]
    """(rows, columns) of the token grid; rows·columns = T."""
    image_size: int

    def logits(self, condition: Condition, context: Tensor) -> Tensor:
        """Teacher-forced logits: [N, T-1] int64 tokens → [N, T, V] float32; entry t sees tokens < t alone."""

    def generate(
        self, condition: Condition, uniforms: Tensor, sampling: Sampling, *, forced: Tensor | None = None
    ) -> Rollout:
        """Draw N sequences without gradient; token [n, t] is forced[n, t] ≥ 0 or drawn at uniforms[n, t]."""

    def text_condition(self, texts: Sequence[str]) -> Condition:
        """Turn texts into conditions on its device, each by itself; UserError: it can read no text."""

    def recompute(self, enabled: bool) -> None:
        """Recompute activations in the backward pass of `logits`, for memory, or keep them."""

    def reference(self) -> Backbone:
        """Return a frozen twin: its tokenizer is shared, its policy a copy, or one with the adapter off."""

    def export(self) -> dict[str, dict[str, Tensor]]:
        """Return {role: state dict} under the official key names (roles: policy, tokenizer)."""


@dataclass(frozen=True, kw_only=True)
class ScoreRequest:
    """Images to be scored, with everything a reward may look at. Rows of one group follow each other."""

    images: Tensor
    """[N, 3, H, W] float32 RGB, 0 black, 1 white; decoders leave that range a little: clamp if you must."""
    group: Tensor
    """[N] int64, equal for samples of one image or prompt."""
    labels: Tensor | None = None
    """[N] int64 class ids of class-conditional samples."""
    texts: tuple[str, ...] = ()
    """Caption or class name of each image; empty if there is none."""
    reference: Tensor | None = None
    """[N, 3, H, W] the real image behind each sample, in the same range; only where there is one."""
    metadata: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """{name: one value per image}; `prompt`: the whole entry behind its text, where there is one."""


@dataclass(frozen=True)
class Scores:
    """What a reward says of N images."""

    values: Tensor
    """[N] float32, raw: larger or smaller is better as the card's direction says."""
    valid: Tensor
    """[N] bool; False where scoring failed. Such a value is ignored, never taken for 0."""


class Reward(Protocol):
    """Scores images: each the same in any company, without changing a random state."""

    def score(self, request: ScoreRequest) -> Scores: ...


@runtime_checkable
class Distance(Protocol):
    """A reward that compares with a reference, each looked at once for many images; smaller is better."""

    def prepare(self, reference: Tensor) -> Any:
        """Return whatever `distance` needs to know of [B, 3, H, W] references in [-1, 1]."""

    def distance(self, images: Tensor, prepared: Any, *, repeats: int) -> Tensor:
        """[B·repeats, 3, H, W] images in [-1, 1], image-major, not clamped → [B·repeats]."""


class Method(Protocol):
    """A post-training method: what is trained, what is collected, what is the loss. It owns no loop.

    Built as `Method(config, backbone=…, reward=…, seed=…)`: its dataclass `Config` of the card's options; the
    generator; what makes a reward of its specification; the run's seed; and `steps=`, their number, if its
    signature asks. All randomness comes of seed, step and sample number. UserError: options, rewards unfit.
    """

    updates: Updates

    def collect(self, batch: Batch, step: int) -> Collected:
        """Gather experience from one micro-batch; called under `torch.no_grad()`."""

    def loss(self, experience: object) -> Loss:
        """Return the mean loss over the micro-batch's images."""


@dataclass(frozen=True)
class Metric:
    """One measured number. Direction, digits and unit live on the evaluator's card."""

    name: str
    value: float
    """NaN: could not be computed; tables leave it blank."""
    n: int
    """Images behind it."""
    interval: tuple[float, float] | None = None
    """95 % interval of sampling error for this one set of images; None: not estimated."""
    resampled: tuple[float, ...] = ()
    """Of resamples of the images; resample k takes image i equally often in every set: sets can be paired."""


@dataclass(frozen=True)
class Prompt:
    """One line of a prompt file."""

    text: str
    tag: str = ""
    """Task or category; empty if the file has none."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """The whole line as it was read, for evaluators that judge by it (GenEval: include, exclude)."""


@dataclass(frozen=True, kw_only=True)
class ImageBatch:
    """Consecutive images of a set, with all that an evaluator may look at."""

    ids: Sequence[int]
    """Position of each image in its set."""
    images: Tensor
    """[n, 3, H, W] uint8 RGB on the CPU."""
    labels: Tensor | None = None
    """[n] int64 class ids."""
    prompts: Sequence[Prompt] = ()
    """One per image; empty for sets without prompts."""
    originals: Tensor | None = None
    """[n, 3, H, W] uint8, what each image reconstructs; only in reconstruction."""
    perturbed: Callable[[float, float], Tensor] | None = None
    """(share, near) → `images` with a share of their codes moved to near ones; only in reconstruction."""

    def __len__(self) -> int:
        return len(self.ids)


Rows = Mapping[str, "np.ndarray"]
"""{column: [n, ...] array of numbers, booleans or fixed-width text}: what is remembered of n images."""


class Measured(Protocol):
    """What an evaluator remembered of a whole image set, row-aligned with the image ids."""

    digest: str
    """Identity of the images."""

    def __len__(self) -> int: ...
    def column(self, name: str) -> np.ndarray:
        """Return one column of all images, [N, ...], in order of the ids."""

    def shards(self, name: str) -> Iterator[np.ndarray]:
        """Yield one column piece by piece in that order."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What a sample set is compared with."""

    digest: str
    """Identity of everything below."""
    measured: Measured | None = None
    """Rows that the same evaluator made of the reference images; None: no images are known."""
    statistics: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Arrays of a statistics file (ADM: mu, sigma, mu_s, sigma_s); these go before moments of `measured`."""


class ImageSet(Protocol):
    """Images in a fixed order, cut into shards of some ids that any process can load in any order."""

    identity: str
    """Changes whenever an image may have changed; cheap to know."""

    def __len__(self) -> int: ...
    def shards(self) -> Sequence[range]: ...
    def load(self, number: int) -> ImageBatch: ...


class Evaluator(Protocol):
    """Images in, metrics out: `measure` for each shard, on any rank, rows are kept; `score` once, on one."""

    identity: str
    """Digest of options and networks: rows measured under another identity are not used."""

    def measure(self, batch: ImageBatch) -> Rows:
        """Return what `score` has to know of each image, whatever images are around it."""

    def score(self, samples: Measured, reference: Reference | None) -> Sequence[Metric]:
        """Turn the rows of all images into metrics; UserError: too few, or a reference that does not fit."""


PROMPT = "prompt"
"""Column that the framework adds where images have prompts; equal for equal prompts."""
