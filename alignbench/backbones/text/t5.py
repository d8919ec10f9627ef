"""Features of a T5 encoder as LlamaGen was trained on them (arXiv:2406.06525), through transformers.

Captions are cleaned twice, cut to the model's number of slots with an end token, padded on the right for the
encoder and moved to the right end for the generator. The features are the encoder's last hidden state.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignbench.api import TextFeatures
from alignbench.backbones.text.captions import clean_caption, left_pad
from alignbench.errors import UserError
from alignbench.files import digest_of

VERSION = 1
"""Changes whenever the same files would give other features."""
BATCH = 8
"""Captions in every forward. The number never changes, so that rounding does not depend on the company that a
caption is in."""


class T5TextEncoder:
    """A frozen T5 encoder; implements `api.TextEncoder`. Weights are read when the first caption comes.

    Args:
        folder: model and tokenizer in the hub's form.
        slots: tokens a caption is cut and padded to, S.
        dtype: of weights, arithmetic and features; LlamaGen's features are bfloat16.
    """

    def __init__(
        self,
        folder: Path,
        *,
        digest: str,
        slots: int,
        width: int,
        device: torch.device,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        self.folder, self.slots, self.width = folder, slots, width
        self.device, self.dtype = device, dtype
        self.identity = digest_of(
            {"t5": digest, "version": VERSION, "slots": slots, "batch": BATCH, "dtype": str(dtype)}
        )

    def encode(self, texts: Sequence[str]) -> TextFeatures:
        """See `api.TextEncoder.encode`: [B, S, C] features in the encoder's dtype.

        Raises:
            UserError: transformers is missing, or the folder does not hold what is expected.
        """
        cleaned = [clean_caption(text) for text in texts]
        parts = [self._encode(cleaned[start : start + BATCH]) for start in range(0, len(texts), BATCH)]
        padded = left_pad(torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]))
        return TextFeatures(padded.features, padded.mask, tuple(texts))

    @torch.no_grad()
    def _encode(self, cleaned: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return (features [n, S, C], mask [n, S]) of at most BATCH captions, padded on the right."""
        tokens = self._tokenizer(
            [*cleaned, *[""] * (BATCH - len(cleaned))],
            max_length=self.slots,
            padding="max_length",
            truncation=True,
            add_special_tokens=True,
            return_attention_mask=True,
            return_tensors="pt",
        ).to(self.device)
        hidden = self._network(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        count = len(cleaned)
        return hidden.last_hidden_state[:count].to(self.dtype), tokens.attention_mask[:count]

    @cached_property
    def _tokenizer(self) -> Any:
        tokenizer = self._load("AutoTokenizer")
        if tokenizer.padding_side != "right":
            raise UserError(f"{self.folder}: its tokenizer pads on the left, T5 pads on the right")
        return tokenizer

    @cached_property
    def _network(self) -> Any:
        network = self._load("T5EncoderModel", dtype=self.dtype)
        if network.config.d_model != self.width:
            raise UserError(
                f"{self.folder} gives features of width {network.config.d_model}, "
                f"the model wants {self.width}",
                fix="use the text encoder that the model's card names",
            )
        return network.to(self.device).eval().requires_grad_(False)

    def _load(self, kind: str, **options: Any) -> Any:
        """Read one object of transformers from the folder; nothing is downloaded."""
        try:
            import transformers
        except ImportError as error:
            raise UserError(
                "T5 features need the package transformers", fix="pip install transformers"
            ) from error
        try:
            return getattr(transformers, kind).from_pretrained(self.folder, local_files_only=True, **options)
        except Exception as error:  # damaged files make its readers fail in nearly any way
            lines = str(error).strip().splitlines()
            raise UserError(
                f"{self.folder} cannot be read as a T5 model: {lines[0] if lines else type(error).__name__}",
                fix="give a folder in the hub's form, e.g. of google/flan-t5-xl",
            ) from error


def build(path: Path, *, digest: str, slots: int, width: int, device: torch.device) -> T5TextEncoder:
    """Build the text encoder of a model card in LlamaGen's precision; see `schema.TextSpec`."""
    return T5TextEncoder(path, digest=digest, slots=slots, width=width, device=device)
