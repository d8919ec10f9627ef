"""Prompts of Janus-Pro: its template, its special tokens, and batches of them padded on the left.

Shapes: B prompts, S tokens. A row is padding, begin-of-sentence, the conversation, begin-of-image; the next
position is that of image token 0. Ids of special tokens are looked up by their text, because they differ
between releases.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from alignbench.api import Condition
from alignbench.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"
PAD = "<｜▁pad▁｜>"
BEGIN_IMAGE = "<begin_of_image>"
END_IMAGE = "<end_of_image>"
PLACEHOLDER = "<image_placeholder>"
USER = "<|User|>"
ASSISTANT = "<|Assistant|>"
SPECIAL = (BOS, EOS, PAD, BEGIN_IMAGE, END_IMAGE, PLACEHOLDER, USER, ASSISTANT)

PROMPT_FILE = "tokenizer.json"
GENERATION = "generation_config.json"
COMPANIONS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "processor_config.json",
    "preprocessor_config.json",
    GENERATION,
    "chat_template.jinja",
)
"""What else a folder in the hub's form may hold beside weights and configuration."""
PROBE = "two red cubes"


@dataclass(frozen=True)
class PromptTokens(Condition):
    """Prompts as token ids."""

    ids: Tensor
    """[B, S] int64; padding on the left, begin-of-image last."""
    mask: Tensor
    """[B, S] bool, False on the padding."""
    texts: tuple[str, ...] = ()
    """The captions as they came, [B]; may be empty."""

    def null(self, pad: int) -> PromptTokens:
        """Replace all between begin-of-sentence and begin-of-image by padding that is attended to.

        Role markers go too; length and mask stay, as in the released program.
        """
        first = self.mask & (self.mask.cumsum(dim=1) == 1)
        kept = first.clone()
        kept[:, -1] = True
        return PromptTokens(self.ids.where(kept, pad), self.mask)

    def right_padded(self) -> PromptTokens:
        """Move the padding behind begin-of-image, where the released VA-π trainer has it."""
        order = torch.argsort(self.mask.int(), dim=1, descending=True, stable=True)
        return PromptTokens(self.ids.gather(1, order), self.mask.gather(1, order), self.texts)

    def positions(self) -> Tensor:
        """Return the position of every token in its own prompt, [B, S] int64; 0 on the padding."""
        return (self.mask.cumsum(dim=1) - 1).clamp(min=0)


def template(caption: str) -> str:
    """Return the conversation that asks Janus-Pro for an image."""
    return f"{USER}: {caption.strip()}\n\n{ASSISTANT}:{BEGIN_IMAGE}"


class PromptTokenizer:
    """Captions to `PromptTokens`; the folder is where the tokenizer was read from, None for the stand-in.

    Raises:
        UserError: it lacks a special token, or loses spaces.
    """

    def __init__(self, tokenizer: Tokenizer, folder: Path | None = None) -> None:
        self._tokenizer, self._folder = tokenizer, folder
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.bos, self.pad, self.begin_image = (self._id(text) for text in (BOS, PAD, BEGIN_IMAGE))
        self._check()

    @property
    def size(self) -> int:
        """Ids it may give out."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(self, texts: Sequence[str]) -> PromptTokens:
        """Return the prompts of captions, on the CPU; a row depends on its caption but for the padding."""
        rows = [[self.bos, *self._ids(template(text))] for text in texts]
        width = max((len(row) for row in rows), default=0)
        ids = [[self.pad] * (width - len(row)) + row for row in rows]
        mask = [[False] * (width - len(row)) + [True] * len(row) for row in rows]
        shape = (len(rows), width)
        return PromptTokens(
            torch.tensor(ids, dtype=torch.int64).view(shape),
            torch.tensor(mask, dtype=torch.bool).view(shape),
            tuple(texts),
        )

    def save(self, folder: Path) -> None:
        """Write the tokenizer, the processor's files where it came with some, and defaults of generation."""
        self._tokenizer.save(str(folder / PROMPT_FILE))
        for name in COMPANIONS if self._folder else ():
            source = Path(self._folder or "", name)
            if source.is_file() and source.parent != folder:
                shutil.copyfile(source, folder / name)
        if not (folder / GENERATION).is_file():
            ids = {"bos_token_id": self.bos, "pad_token_id": self.pad, "guidance_scale": 5}
            content = {**ids, "generation_kwargs": {"boi_token_id": self.begin_image}}
            (folder / GENERATION).write_text(json.dumps(content, indent=2), encoding="utf-8")

    def _ids(self, text: str) -> list[int]:
        # Without the tokenizer's own additions: not every release puts begin-of-sentence in front.
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _id(self, text: str) -> int:
        number = self._tokenizer.token_to_id(text)
        if number is None:
            raise UserError(
                f"{self._folder or 'the tokenizer'} has no token {text}",
                fix=f"take {PROMPT_FILE} from the repository of the weights",
            )
        return int(number)

    def _check(self) -> None:
        ids = self._ids(template(PROBE))
        back = self._tokenizer.decode(ids, skip_special_tokens=False)
        if PROBE not in back or ids[-1] != self.begin_image or ids.count(self.begin_image) != 1:
            raise UserError(
                f"{self._folder or 'the tokenizer'} turns {template(PROBE)!r} into {back!r}",
                fix=f"its {PROMPT_FILE} belongs to another model or was converted badly",
            )


def read_prompt_tokenizer(path: Path) -> PromptTokenizer:
    """Read a `tokenizer.json`; the processor's files may lie beside it.

    The file is read as it is: transformers' own loading rules depend on the files around it, and some of its
    versions lose the spaces of this tokenizer.

    Raises:
        UserError: it does not exist or cannot be used.
    """
    from tokenizers import Tokenizer

    if not path.is_file():
        raise UserError(
            f"{path} does not exist: prompts cannot be read",
            fix=f"copy the model's {PROMPT_FILE} beside its weights",
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        reason = str(error).splitlines()[0][:120]
        raise UserError(f"{path} cannot be read ({reason})", fix="fetch it again") from error
    return PromptTokenizer(tokenizer, path.parent)


def stand_in() -> PromptTokenizer:
    """Return a tokenizer of single bytes with Janus' special tokens, for models with random weights."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {text: number for number, text in enumerate((*SPECIAL, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    return PromptTokenizer(tokenizer)
