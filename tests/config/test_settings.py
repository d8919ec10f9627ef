"""Names and `--set` values become one validated configuration; mistakes are named with a suggestion."""

from __future__ import annotations

import pytest

from alignbench.config.settings import known_options, resolve, values_of
from alignbench.errors import UserError
from alignbench.registry.lookup import Registry


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.default()


def test_precedence_is_default_recipe_flag(registry: Registry) -> None:
    given = ["method.clip_range=0.1", "noise=0.5"]
    config = resolve(registry, method="vapi", model="llamagen-xxl", assignments=given, steps=7)
    assert config.recipe == "vapi-llamagen-xxl"
    origins = {key: (origin.value, origin.source) for key, origin in config.values.items()}
    assert origins["method.clip_range"] == (0.1, "--set")
    assert origins["method.noise"] == (0.5, "--set")  # a bare key that only one namespace has
    assert origins["train.steps"] == (7, "--steps")
    assert origins["train.lr"] == (1e-6, "recipe vapi-llamagen-xxl")
    assert origins["train.updates_per_collect"] == (1, "default")
    assert set(config.changed()) == {"method.clip_range", "method.noise", "train.steps"}
    assert config.train.steps == 7


def test_rare_options_are_there_only_if_they_were_given(registry: Registry) -> None:
    plain, given = (
        resolve(registry, method="vapi", model="llamagen-tiny", assignments=text)
        for text in ([], ["ratio=gspo", "failed_rewards=0.2"])
    )
    assert given.values.keys() - plain.values.keys() == {"method.ratio", "train.failed_rewards"}
    assert given.section("method")["ratio"] == "gspo"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "vappi"}, "no method named 'vappi'. Did you mean vapi? See: alignbench list methods"),
        ({"model": "lamagen-xxl"}, "no model named 'lamagen-xxl'. Did you mean llamagen-xxl"),
        ({"dataset": "digits9"}, "no dataset named 'digits9'. Did you mean digits8?"),
        ({"assignments": ["clip_rng=1"]}, "no setting named 'clip_rng'. Did you mean method.clip_range?"),
        ({"assignments": ["train.lrr=1"]}, "no setting named 'train.lrr'. Did you mean train.lr?"),
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


def test_where_few_keys_have_a_meaning_the_others_are_refused(registry: Registry) -> None:
    options = known_options(registry, sections=["protocol", "assets"])
    given = ["samples=60", "assets.inception-2015-12-05=/here"]
    assert values_of(given, options) == {"protocol.samples": 60, "assets.inception-2015-12-05": "/here"}
    mistakes = {
        "train.lr=1": "train.lr changes nothing here: no training → leave it out",
        "protocol.sample=1": "changes nothing here: no training. Did you mean protocol.samples?",
        "samples=few": "protocol.samples: 'few' is not a whole number",
        "samples": "not of the form key=value",
    }
    for text, message in mistakes.items():
        with pytest.raises(UserError) as caught:
            values_of([text], options, why="no training")
        assert message in str(caught.value)
