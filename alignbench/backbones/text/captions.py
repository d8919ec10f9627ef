"""Captions on their way to a text-conditional LlamaGen: cleaning before the text encoder, padding after it.

The cleaning is the one the model was trained with (DeepFloyd-IF's, by way of PixArt): a fixed list of
substitutions. They are applied in order, and some look odd; the order and the oddities are the format.
"""

from __future__ import annotations

import html
import re
import urllib.parse
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from alignbench.api import TextFeatures
from alignbench.errors import UserError

Rules = Sequence[tuple[re.Pattern[str], str]]

_DOMAIN = r"[a-zA-Z0-9.\-]+\.(?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"
_FILE_TYPE = r"(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)"
_SEPARATOR = re.compile(r"[-_]")
MANY_SEPARATORS = 3
"""With more separators than this a caption is taken for words-joined-by-dashes."""


def _rules(*pairs: tuple[str, str]) -> Rules:
    return [(re.compile(pattern), replacement) for pattern, replacement in pairs]


_BEFORE_MARKUP = _rules(
    ("<person>", "person"),
    (rf"\b(?:https?:(?:/{{1,3}}|[a-zA-Z0-9%])|{_DOMAIN})", ""),
    (rf"\b(?:www:(?:/{{1,3}}|[a-zA-Z0-9%])|{_DOMAIN})", ""),
)
_CHARACTERS = _rules(
    (r"@\w+\b", ""),  # handles
    (r"[\u31c0-\u9fff]+", ""),  # East Asian blocks, from CJK strokes to the unified ideographs
    (
        r"[\u002d\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0"
        r"\ufe31\ufe32\ufe58\ufe63\uff0d]+",
        "-",
    ),
    (r"[\u0060\u00b4\u00ab\u00bb\u201c\u201d\u00a8]", '"'),
    (r"[\u2018\u2019]", "'"),
    (r"&quot;?", ""),
    (r"&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),  # network addresses
    (r"\d:\d\d\s+$", ""),
    (r"\\n", " "),
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"\S+\.{_FILE_TYPE}", ""),
    (r"[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~()\[\]{}|\\/*]+", " "),
    (r"\s+\.\s+", " "),
)
_WORDS = _rules(
    # Mixtures of letters and digits: article numbers and the like.
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),
    (r"\b\d+[a-zA-Z]+\d+\b", ""),
    # What shops and download pages say.
    (r"(?:worldwide\s+)?(?:free\s+)?shipping", ""),
    (r"(?:free\s)?download(?:\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b{_FILE_TYPE}(?:\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),
    (r"\b\d+\.?\d*[x\u0445\u00d7]\d+\.?\d*\b", ""),  # 10x20, with a Latin or Cyrillic x or a times sign
    # Spacing and the ends.
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
    (r"^[\"']([\w\W]+)[\"']$", r"\1"),
    (r"^['_,\-:;]", ""),
    (r"['_,\-:+]$", ""),
    (r"^\.\S+$", ""),
)


def clean_caption(caption: str) -> str:
    """Clean a caption as LlamaGen's text features were made: two passes of the rules.

    Raises:
        UserError: ftfy or beautifulsoup4 is not installed.
    """
    return _clean_once(_clean_once(caption))


def left_pad(features: Tensor, mask: Tensor) -> TextFeatures:
    """Move right-padded text features to the right end, as LlamaGen takes them.

    Args:
        features: [B, S, C]; rows behind the last real token may hold anything.
        mask: [B, S] of 0/1 or bool, the real tokens first.

    Returns:
        Features with the real tokens last in their old order and zeros before them.
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
    caption = _substitute(caption, _BEFORE_MARKUP)
    with warnings.catch_warnings():
        # A caption that looks like a file name is still a caption.
        warnings.simplefilter("ignore", MarkupResemblesLocatorWarning)
        caption = BeautifulSoup(caption, features="html.parser").text
    caption = _substitute(caption, _CHARACTERS)
    if len(_SEPARATOR.findall(caption)) > MANY_SEPARATORS:
        caption = _SEPARATOR.sub(" ", caption)
    caption = html.unescape(html.unescape(ftfy.fix_text(caption))).strip()
    return _substitute(caption, _WORDS).strip()


def _substitute(text: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text
