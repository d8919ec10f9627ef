"""Captions on their way to a text-conditional LlamaGen: cleaning before the text encoder, padding after it.

The cleaning is the one the model was trained with; its rules are in `caption_rules`.
"""

from __future__ import annotations

import html
import urllib.parse
import warnings

import torch
from torch import Tensor

from alignbench.api import TextFeatures
from alignbench.backbones.text.caption_rules import (
    BEFORE_MARKUP,
    CHARACTERS,
    MANY_SEPARATORS,
    SEPARATOR,
    WORDS,
    Rules,
)
from alignbench.errors import UserError


def clean_caption(caption: str) -> str:
    """Clean a caption as LlamaGen's text features were made: two passes of the rules.

    Raises:
        UserError: ftfy or beautifulsoup4 is not installed.
    """
    return _clean_once(_clean_once(caption))


def left_pad(features: Tensor, mask: Tensor) -> TextFeatures:
    """Move right-padded text features [B, S, C] to the right end, as LlamaGen takes them.

    The mask, [B, S] of 0/1 or bool, has the real tokens first; rows behind them may hold anything. Returns
    features with the real tokens last in their old order and zeros before them.
    """
    valid = mask.bool()
    count = valid.sum(dim=1, keepdim=True)
    position = (torch.arange(mask.shape[1], device=mask.device) + count) % mask.shape[1]
    moved = features.gather(1, position[..., None].expand_as(features))
    valid = valid.flip(1)
    # Not a product with the mask: padding may hold anything, infinities included.
    return TextFeatures(moved.masked_fill(~valid[..., None], 0.0), valid)


def _clean_once(caption: str) -> str:
    try:
        import ftfy
        from bs4 import BeautifulSoup, MarkupResemblesLocatorWarning
    except ImportError as error:
        raise UserError(
            f"cleaning captions needs {error.name}, which is not installed",
            fix="pip install ftfy beautifulsoup4",
        ) from error
    caption = urllib.parse.unquote_plus(caption).strip().lower()
    caption = _substitute(caption, BEFORE_MARKUP)
    with warnings.catch_warnings():
        # A caption that looks like a file name is still a caption.
        warnings.simplefilter("ignore", MarkupResemblesLocatorWarning)
        caption = BeautifulSoup(caption, features="html.parser").text
    caption = _substitute(caption, CHARACTERS)
    if len(SEPARATOR.findall(caption)) > MANY_SEPARATORS:
        caption = SEPARATOR.sub(" ", caption)
    caption = html.unescape(html.unescape(ftfy.fix_text(caption))).strip()
    return _substitute(caption, WORDS).strip()


def _substitute(text: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text
