"""Where cards are found, what is said of broken ones, and the identity of a protocol."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignbench.api import Sampling
from alignbench.errors import UserError
from alignbench.registry.lookup import Registry
from alignbench.registry.protocol import ProtocolCard, Setting, protocol_digest


def test_protocol_digest_ignores_words_settings_and_seeds_only() -> None:
    card = Registry.default().protocol("digits8")
    digest = protocol_digest(card)
    assert protocol_digest(card.model_copy(update={"title": "other", "seeds": [9]})) == digest
    changes = {"samples": 7, "labels": "uniform", "batch": 1, "resize": "bicubic", "version": 99}
    for key, value in changes.items():
        assert protocol_digest(card.model_copy(update={key: value})) != digest, key


def test_two_cards_of_one_name_are_an_error(tmp_path: Path) -> None:
    source = Registry.default().locations["methods"]["vapi"].path
    for root in ("one", "two"):
        (tmp_path / root / "methods").mkdir(parents=True)
        (tmp_path / root / "methods" / "mine.toml").write_text(source.read_text())
    with pytest.raises(UserError, match=r"two method cards are named 'mine'.*one.*two"):
        Registry([("a", tmp_path / "one"), ("b", tmp_path / "two")]).names("methods")


def test_a_broken_card_names_file_key_and_reason(tmp_path: Path) -> None:
    (tmp_path / "rewards").mkdir()
    file = tmp_path / "rewards" / "bad.toml"
    lines = ['title = "x"', 'target = "a:b"', 'direction = "sideways"', "differentiable = true"]
    file.write_text("\n".join([*lines, 'scope = "image"', "wat = 1"]))
    with pytest.raises(UserError) as caught:
        Registry([("here", tmp_path)]).reward("bad")
    assert str(file) in str(caught.value)
    assert "direction: Input should be 'higher' or 'lower'" in str(caught.value)
    assert "wat: Extra inputs are not permitted" in str(caught.value)
    file.write_text("title = ")
    with pytest.raises(UserError, match=r"bad\.toml: not a readable TOML card"):
        Registry([("here", tmp_path)]).reward("bad")


def test_settings_are_named_by_their_keys_and_sample_plainly_where_they_say_nothing() -> None:
    content = Registry.default().protocol("digits8").model_dump()
    setting = ProtocolCard.model_validate(
        content | {"settings": {"t2": {"title": "T=2", "temperature": 2}}}
    ).settings["t2"]
    assert setting.sampling() == Sampling(temperature=2.0) and setting.name == "t2"
    assert setting.identity == setting.model_copy(update={"name": "hot", "title": "Hot"}).identity
    assert Setting.unsampled("given", "as given").identity == "given" != setting.identity
    for settings in ({"t2": {"title": "T=2", "name": "t1"}}, {"../t2": {"title": "T=2"}}):
        with pytest.raises(ValueError, match=r"named by its key|match pattern"):
            ProtocolCard.model_validate(content | {"settings": settings})
