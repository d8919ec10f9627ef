"""Prompts of Janus: template, special tokens, padding, and text tokenizers that would spoil them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from alignbench.backbones.janus.prompts import SPECIAL, read_prompt_tokenizer, stand_in
from alignbench.errors import UserError
from tests.helpers import janus_toys

TAG = "<begin_of_image>"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What transformers writes of a processor."""
    folder = tmp_path_factory.mktemp("hub")
    janus_toys.processor().save_pretrained(folder)
    return folder


def test_the_stand_in_reads_what_the_hub_s_tokenizer_reads(hub: Path) -> None:
    texts = ["a cat", " zwei  rote Würfel\n", "", "a photo of <|User|>"]
    one, other = stand_in().encode(texts), read_prompt_tokenizer(hub / "tokenizer.json").encode(texts)
    assert torch.equal(one.ids, other.ids) and torch.equal(one.mask, other.mask)
    assert one.ids[:, -1].eq(3).all() and (one.ids * one.mask).eq(3).sum() == 4


def edited(hub: Path, path: Path, change: Any) -> Path:
    content = json.loads((hub / "tokenizer.json").read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def test_special_ids_are_looked_up_by_text(hub: Path, tmp_path: Path) -> None:
    """Releases number them differently: here padding and begin-of-image change places."""

    def swap(content: Any) -> None:
        vocabulary, added = content["model"]["vocab"], content["added_tokens"]
        one, other = SPECIAL[2], SPECIAL[3]
        vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
        for token in added:
            token["id"] = vocabulary[token["content"]]
        added.sort(key=lambda token: token["id"])

    tokenizer = read_prompt_tokenizer(edited(hub, tmp_path / "tokenizer.json", swap))
    assert (tokenizer.bos, tokenizer.pad, tokenizer.begin_image) == (0, 3, 2)
    prompts = tokenizer.encode(["a cat", "cat"])
    assert prompts.ids[:, -1].tolist() == [2, 2] and prompts.ids[1, 0] == 3


def rename(content: Any) -> None:
    text = json.dumps(content).replace(TAG, "<image>")
    content.clear()
    content.update(json.loads(text))


def metaspace(content: Any) -> None:
    """What some versions of transformers make of this tokenizer: spaces vanish."""
    content["pre_tokenizer"] = {
        "type": "Metaspace",
        "replacement": "▁",
        "prepend_scheme": "first",
        "split": False,
    }


@pytest.mark.parametrize(("change", "message"), [(rename, "has no token"), (metaspace, "turns")])
def test_a_tokenizer_that_would_spoil_prompts_is_refused(
    change: Any, message: str, hub: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        read_prompt_tokenizer(edited(hub, tmp_path / "tokenizer.json", change))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be read"):
        read_prompt_tokenizer(tmp_path / "tokenizer.json")


def test_padding_settings_inside_the_file_are_ignored(hub: Path, tmp_path: Path) -> None:
    def pad(content: Any) -> None:
        content["padding"] = {
            "strategy": {"Fixed": 100}, "direction": "Right", "pad_to_multiple_of": None,
            "pad_id": 2, "pad_type_id": 0, "pad_token": SPECIAL[2],
        }  # fmt: skip
        content["truncation"] = {
            "direction": "Right", "max_length": 12, "strategy": "LongestFirst", "stride": 0,
        }  # fmt: skip

    tokenizer = read_prompt_tokenizer(edited(hub, tmp_path / "tokenizer.json", pad))
    assert torch.equal(tokenizer.encode(["a cat"]).ids, stand_in().encode(["a cat"]).ids)
