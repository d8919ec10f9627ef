"""A text encoder small enough to be trained with the generator: known words, their places, one layer.

For closed languages such as the prompts of procedural scenes. A word outside the list is an error, not a
guess. Its file is one safetensors file that also holds the word list.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from alignbench.api import TextFeatures
from alignbench.backbones.weights import load_strict
from alignbench.errors import UserError, suggest
from alignbench.files import digest_of, parse_json

VERSION = 1
"""Changes whenever the same file would give other features."""
METADATA = "word_encoder"
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, kw_only=True)
class WordConfig:
    """Geometry of a `WordEncoder`."""

    words: tuple[str, ...]
    """Lower case, each once; a word's id is its place here + 1, and 0 stands for no word."""
    slots: int
    """Longest caption in words, S."""
    width: int
    """C; with a layer a multiple of `heads`."""
    heads: int = 2
    layer: bool = True
    """Whether a transformer layer lets words see each other; without one the generator's attention must bind
    attributes to things by place alone."""


class WordEncoder(nn.Module):
    """Captions of known words to left-padded features; an `api.TextEncoder` once it is trained.

    Its identity has the digest of the file it was read from.
    """

    def __init__(self, config: WordConfig, *, digest: str = "") -> None:
        super().__init__()
        assert len(set(config.words)) == len(config.words) and config.width % config.heads == 0
        self.config = config
        self.identity = digest_of({"words": asdict(config), "version": VERSION, "weights": digest})
        self._ids = {word: number for number, word in enumerate(config.words, start=1)}
        self.word = nn.Embedding(len(config.words) + 1, config.width)
        self.place = nn.Embedding(config.slots, config.width)
        self.layer = _Layer(config.width, config.heads) if config.layer else None

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """[B, S] int64 word ids and [B, S] bool mask, words at the right end → [B, S, C], zero elsewhere."""
        # Counted from the first word, so that a word's features do not depend on the padding before it.
        position = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
        x = self.word(ids) + self.place(position)
        if self.layer is not None:
            x = self.layer(x, mask)
        out: Tensor = x.masked_fill(~mask[..., None], 0.0)
        return out

    def tokenise(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return (ids [B, S] int64, mask [B, S] bool) on the CPU; case and punctuation do not count.

        Raises:
            UserError: an unknown word, or more words than slots.
        """
        slots = self.config.slots
        ids = torch.zeros(len(texts), slots, dtype=torch.int64)
        for row, text in enumerate(texts):
            words = _WORD.findall(text.lower())
            if len(words) > slots:
                raise UserError(
                    f"caption {text!r} has {len(words)} words, the text encoder reads {slots}",
                    fix="shorten the caption",
                )
            if words:
                ids[row, slots - len(words) :] = torch.tensor([self._id(word, text) for word in words])
        return ids, ids > 0

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> TextFeatures:
        """See `api.TextEncoder.encode`.

        Raises:
            UserError: an unknown word, or more words than slots.
        """
        ids, mask = (part.to(self.word.weight.device) for part in self.tokenise(texts))
        return TextFeatures(self(ids, mask), mask, tuple(texts))

    def save(self, path: Path) -> None:
        """Write weights, geometry and word list as one safetensors file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {name: tensor.cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(state, path, metadata={METADATA: json.dumps(asdict(self.config))})

    def _id(self, word: str, text: str) -> int:
        if word in self._ids:
            return self._ids[word]
        raise UserError(
            f"the text encoder does not know {word!r} in {text!r}.{suggest(word, self.config.words)}",
            fix=f"use only its {len(self.config.words)} words: {', '.join(self.config.words)}",
        )


class _Layer(nn.Module):
    """One pre-norm transformer layer in which words see each other in both directions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.ffn_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        parts = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        # Padding sees itself, so that its softmax stays finite; nothing sees padding.
        visible = mask[:, None, None, :] | torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=visible)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        out: Tensor = x + self.down(F.gelu(self.up(self.ffn_norm(x))))
        return out


def load(path: Path, *, digest: str = "") -> WordEncoder:
    """Read a file written by `WordEncoder.save`; in eval mode, frozen.

    Raises:
        UserError: not such a file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read: {error}", fix="get the file again") from error
    if METADATA not in metadata:
        raise UserError(f"{path} holds no word list", fix="give a file written by WordEncoder.save")
    try:
        values = parse_json(metadata[METADATA])
        config = WordConfig(**{**values, "words": tuple(values["words"])})
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path}: its word list cannot be read: {error}", fix="get the file again") from error
    encoder = WordEncoder(config, digest=digest)
    load_strict(encoder, state, name=str(path))
    return encoder.eval().requires_grad_(False)


def build(path: Path, *, digest: str, slots: int, width: int, device: torch.device) -> WordEncoder:
    """Build the text encoder of a model card; see `schema.TextSpec`.

    Raises:
        UserError: not a file of a word encoder, or one of another size.
    """
    encoder = load(path, digest=digest)
    if (encoder.config.slots, encoder.config.width) != (slots, width):
        raise UserError(
            f"{path} gives {encoder.config.slots} × {encoder.config.width} features, "
            f"the model wants {slots} × {width}"
        )
    return encoder.to(device)
