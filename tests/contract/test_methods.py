"""The contract of `api.Method`, over every method card; a new card is tested as soon as it exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from alignbench import testing
from alignbench.errors import UserError
from alignbench.registry.lookup import Registry
from alignbench.testing import Case
from tests.helpers import method_checks

REGISTRY = Registry.default()
MODEL = "llamagen-tiny"
METHODS = REGISTRY.names("methods")
CHECKS = {check.__name__: check for check in method_checks.METHOD_CHECKS}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("check", CHECKS)
def test_contract(check: str, method: str, tmp_path: Path) -> None:
    if REGISTRY.model(MODEL).condition not in REGISTRY.method(method).conditions:
        pytest.skip(f"{method} does not train {MODEL}: another kind of condition")
    CHECKS[check](Case(REGISTRY, method, MODEL), tmp_path)


@pytest.mark.parametrize("method", METHODS)
def test_the_public_checks(method: str, tmp_path: Path) -> None:
    if REGISTRY.model(MODEL).condition not in REGISTRY.method(method).conditions:
        pytest.skip(f"{method} does not train {MODEL}: another kind of condition")
    for check in testing.METHOD_CHECKS:
        check(Case(REGISTRY, method, MODEL), tmp_path / check.__name__)


def variants() -> list[tuple[str, str]]:
    """Every method with each of its switches thrown, one at a time."""
    found = []
    for method in METHODS:
        for name, option in REGISTRY.method(method).options.items():
            values = [False, True] if isinstance(option.default, bool) else option.choices
            found += [(method, f"method.{name}={value}") for value in values if value != option.default]
    return found


@pytest.mark.parametrize(("method", "switch"), variants())
def test_two_ranks_give_what_one_gives_with_every_switch(method: str, switch: str, tmp_path: Path) -> None:
    if REGISTRY.model(MODEL).condition not in REGISTRY.method(method).conditions:
        pytest.skip(f"{method} does not train {MODEL}: another kind of condition")
    method_checks.two_ranks_give_what_one_gives(Case(REGISTRY, method, MODEL, (switch,)), tmp_path)


@pytest.mark.parametrize("method", METHODS)
def test_the_card_tells_a_reader_what_it_is(method: str) -> None:
    card = REGISTRY.method(method)
    assert card.title and card.summary.endswith(".") and card.notes
    assert re.fullmatch(r"|arXiv:\d{4}\.\d{5}", card.paper)
    assert bool(card.reward_options) <= ("rewards" in card.needs)
    assert "images" in card.needs or "rewards" in card.needs
    for name, option in card.options.items():
        assert option.doc.endswith("."), f"option {name} has no sentence"
        assert len(option.choices) != 1 or option.choices == [option.default]
    if REGISTRY.model(MODEL).condition in card.conditions:
        try:
            assert REGISTRY.recipe_for(method, MODEL) is not None, "the embedded model has no recipe"
        except UserError as error:
            pytest.fail(str(error))
