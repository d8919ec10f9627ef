"""Names and `--set` values become one validated configuration; mistakes are named with a suggestion."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignbench.config.settings import resolve
from alignbench.errors import UserError
from alignbench.registry.lookup import Registry
from alignbench.registry.protocol import protocol_digest


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.default()


def test_precedence_is_default_recipe_flag(registry: Registry) -> None:
    config = resolve(
        registry,
        method="vapi",
        model="llamagen-xxl",
        assignments=["method.clip_range=0.1", "noise=0.5"],
        steps=7,
    )
    assert config.recipe == "vapi-llamagen-xxl"
    origins = {key: (origin.value, origin.source) for key, origin in config.values.items()}
    assert origins["method.clip_range"] == (0.1, "--set")
    assert origins["method.noise"] == (0.5, "--set")  # a bare key that only one namespace has
    assert origins["train.steps"] == (7, "--steps")
    assert origins["train.lr"] == (1e-6, "recipe vapi-llamagen-xxl")
    assert origins["train.updates_per_collect"] == (1, "default")
    assert set(config.changed()) == {"method.clip_range", "method.noise", "train.steps"}
    assert config.train.steps == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "vappi"}, "no method named 'vappi'. Did you mean vapi? See: alignbench list methods"),
        ({"model": "lamagen-xxl"}, "no model named 'lamagen-xxl'. Did you mean llamagen-xxl"),
        ({"dataset": "digits9"}, "no dataset named 'digits9'. Did you mean digits8?"),
        (
            {"assignments": ["method.clip_rang=1"]},
            "no setting named 'method.clip_rang'. Did you mean method.clip_range?",
        ),
        ({"assignments": ["clip_rng=1"]}, "Did you mean method.clip_range?"),
        ({"assignments": ["train.lrr=1"]}, "Did you mean train.lr?"),
        ({"assignments": ["train.steps"]}, "not of the form key=value"),
        ({"assignments": ["train.steps=ten"]}, "train.steps: 'ten' is not a whole number"),
        ({"assignments": ["train.steps=1.5"]}, "train.steps: '1.5' is not a whole number"),
        ({"assignments": ["train.lr=fast"]}, "train.lr: 'fast' is not a number"),
        ({"assignments": ["train.lr=nan"]}, "train.lr: nan is not a finite number"),
        ({"assignments": ["train.recompute=1"]}, "train.recompute: '1' is not true or false"),
        ({"assignments": ["method.fidelity=exat"]}, "method.fidelity: 'exat' is not one of exact, official"),
        ({"assignments": ["method.group_size=1"]}, "method.group_size: 1 is below 2"),
        ({"assignments": ["train.steps=3"], "steps": 4}, "were both given"),
        ({"recipe": "vapi-llamagen-xxxl"}, "no recipe named"),
    ],
)  # fmt: skip
def test_mistakes_are_named(registry: Registry, arguments: dict[str, object], message: str) -> None:
    values = {"method": "vapi", "model": "llamagen-tiny", **arguments}
    with pytest.raises(UserError) as caught:
        resolve(registry, **values)  # type: ignore[arg-type]
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


def test_protocol_digest_ignores_words_settings_and_seeds_only(registry: Registry) -> None:
    card = registry.protocol("digits8")
    digest = protocol_digest(card)
    assert protocol_digest(card.model_copy(update={"title": "other", "seeds": [9]})) == digest
    for change in (
        {"samples": 7},
        {"labels": "uniform"},
        {"batch": 1},
        {"resize": "bicubic"},
        {"version": 99},
    ):
        assert protocol_digest(card.model_copy(update=change)) != digest


def test_two_cards_of_one_name_are_an_error(tmp_path: Path) -> None:
    source = Registry.default().found["methods"]["vapi"].path
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


def test_a_method_from_a_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Registry.default().found["methods"]["vapi"].path
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "mine.toml").write_text(source.read_text())
    monkeypatch.setenv("ALIGNBENCH_PATH", str(tmp_path))
    found = Registry.default().found["methods"]["mine"]
    assert found.origin == "ALIGNBENCH_PATH"
