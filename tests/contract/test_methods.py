"""The contract of `api.Method`, over every method card; a new card is tested as soon as it exists."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from alignbench import testing
from alignbench.registry import interfaces
from alignbench.registry.lookup import Registry
from alignbench.registry.plugins import load_registry
from alignbench.testing import Case
from tests.helpers import method_checks
from tests.training.sharded import redness
from tests.training.test_sharding import case as sharding_case

REGISTRY = Registry.default()
METHODS = REGISTRY.names("methods")
CHECKS = {check.__name__: check for check in method_checks.METHOD_CHECKS}
PUBLIC = {check.__name__: check for check in testing.METHOD_CHECKS}
PLAIN = ("bool", "int", "float")
COMPANIONS = {
    **dict.fromkeys([("vapi", "kl_estimator"), ("vapi", "kl_in")], "method.prior=kl"),
    ("ntp", "noise_schedule"): "method.noise=1",
    ("ar-grpo", "weight_sum"): "method.token_weights=opposite*entropy(0.5)",
}
"""What a switch needs to have a meaning."""
WEIGHED = {
    "gcpo": ("method.token_weights=critical*divergence(gradient=attached)", "method.kl_weight=0.5"),
    "stage": ("method.token_weights=opposite", "method.weight_sum=weights", "method.entropy_reward=0.4"),
    "contrast": ("method.token_weights=contrast", "method.cfg_scale=2", "method.kl_in=reward"),
}
"""Weights of tokens, all factors but plain shares."""
BEYOND = ("method.advantage_std=batch", "method.redraws=2", "method.group_size=2")
"""Whatever looks further than at a group as it was drawn."""
WHOLE = {
    "ntp": ("method.noise=1", "method.noise_schedule=annealed"),
    "tokenizer-decoder": ("method.samples=re-encoded", "method.preserved=0.7", "method.cfg_scale=1.5"),
}
"""Options that change what a method is: held to everything again."""
EQUAL = {"vapi": "method.temperature=0.05", "ar-grpo": "method.rewards=class-logprob-digits|quantise(2)"}
"""What makes some groups flat."""


def case_of(method: str, *settings: str, model: str = "llamagen-tiny") -> Case:
    if REGISTRY.model(model).condition not in REGISTRY.method(method).conditions:
        pytest.skip(f"{method} does not train {model}: another kind of condition")
    return Case(REGISTRY, method, model, settings)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("check", CHECKS)
def test_contract(check: str, method: str, tmp_path: Path) -> None:
    CHECKS[check](case_of(method), tmp_path)


@pytest.mark.parametrize("method", METHODS)
def test_the_public_checks(method: str, tmp_path: Path) -> None:
    for name, check in PUBLIC.items():
        check(case_of(method), tmp_path / name)


def variants() -> list[tuple[str, ...]]:
    """Every class of methods with each of its switches thrown, one at a time."""
    found = []
    for method in {REGISTRY.method(name).target: name for name in METHODS}.values():
        for name, option in REGISTRY.method(method).options.items():
            values = [False, True] if isinstance(option.default, bool) else option.choices
            needed = [COMPANIONS[method, name]] if (method, name) in COMPANIONS else []
            settings = [f"method.{name}={value}" for value in values if value != option.default]
            found += [(method, switch, *needed) for switch in settings]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("settings", variants(), ids="-".join)
def test_two_ranks_give_what_one_gives_with_every_switch(settings: tuple[str, ...], tmp_path: Path) -> None:
    method_checks.two_ranks_give_what_one_gives(case_of(*settings), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("check", sorted((CHECKS | PUBLIC).keys() - {"two_ranks_give_what_one_gives"}))
@pytest.mark.parametrize("method", WHOLE)
def test_contract_of_another_form(method: str, check: str, tmp_path: Path) -> None:
    (CHECKS | PUBLIC)[check](case_of(method, *WHOLE[method]), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("method", EQUAL)
def test_what_looks_beyond_a_group_depends_on_no_split(method: str, tmp_path: Path) -> None:
    case = case_of(method, *BEYOND, EQUAL[method])
    assert method_checks.whole_step(case, tmp_path).numbers["redrawn_groups"] > 0
    method_checks.two_ranks_give_what_one_gives(case, tmp_path)
    method_checks.micro_batches_change_nothing(case, tmp_path)
    testing.a_resumed_run_is_the_same(case, tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("few_scenes")
@pytest.mark.parametrize("model", ["llamagen-tiny", "shapes-tiny"])
@pytest.mark.parametrize("settings", WEIGHED.values(), ids=WEIGHED)
def test_weights_of_tokens_keep_every_contract(settings: tuple[str, ...], model: str, tmp_path: Path) -> None:
    for name, check in (CHECKS | PUBLIC).items():
        check(case_of("ar-grpo", *settings, model=model), tmp_path / name)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("model", ["shapes-tiny", "janus-tiny"])
@pytest.mark.parametrize("method", METHODS)
def test_splits_and_interruptions_on_the_other_models(method: str, model: str, tmp_path: Path) -> None:
    guided = ("method.cfg_scale=2",) if "rewards" in REGISTRY.method(method).options else ()
    given = (*sharding_case(model, method).more, *guided)
    case = Case(load_registry([redness]), method, model, given)
    for name in ("gradients_reach_only_what_trains", "numbers_come_from_addresses"):
        PUBLIC[name](case, tmp_path / name)
    method_checks.only_what_trains_changes(case, tmp_path)
    method_checks.two_ranks_give_what_one_gives(case, tmp_path)
    testing.a_resumed_run_is_the_same(case, tmp_path)


@pytest.mark.usefixtures("few_scenes")
def test_groups_of_captions_are_drawn_again(tmp_path: Path) -> None:
    case = case_of("ar-grpo", *BEYOND, "method.temperature=0.05", model="shapes-tiny")
    assert method_checks.whole_step(case, tmp_path).numbers["redrawn_groups"] > 0
    testing.numbers_come_from_addresses(case, tmp_path)


@pytest.mark.parametrize("method", METHODS)
def test_the_card_tells_a_reader_what_it_is(method: str) -> None:
    card = REGISTRY.method(method)
    assert card.notes and bool(card.reward_options) <= ("rewards" in card.needs)
    assert "images" in card.needs or "rewards" in card.needs
    for field in dataclasses.fields(interfaces.load(REGISTRY, "methods", method).Config):
        option = card.options[field.name]
        assert field.default is dataclasses.MISSING, "the card has the defaults"
        assert type(option.default).__name__ == (field.type if field.type in PLAIN else "str"), field.name
        assert len(option.choices) != 1 or option.choices == [option.default]
    assert REGISTRY.recipe_for(method, case_of(method).model) is not None, "the embedded model has no recipe"
