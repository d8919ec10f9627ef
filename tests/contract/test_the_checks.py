"""The contract's checks find what they are there to find."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignbench.registry.lookup import Registry
from alignbench.testing import Case
from tests.helpers import method_checks as checks

BUILT_IN = Registry([("built-in", Path(__file__).parents[2] / "registry")])


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("OwnGenerator", checks.two_ranks_give_what_one_gives),
        ("GlobalGenerator", checks.two_ranks_give_what_one_gives),
        ("GlobalGenerator", checks.repetition_gives_the_same_bits),
        ("GlobalGenerator", checks.collecting_leaves_no_trace),
        ("PlaceInBatch", checks.two_ranks_give_what_one_gives),
        ("PlaceInBatch", checks.micro_batches_change_nothing),
        ("SumOverImages", checks.micro_batches_change_nothing),
        ("KeepsGraph", checks.collecting_leaves_no_trace),
        ("LeavesTrainMode", checks.collecting_leaves_no_trace),
        ("CountsOneByOne", checks.counts_are_right),
        ("TouchesTheTokenizer", checks.only_what_trains_changes),
    ],
)
def test_fault_is_found(fault: str, check: checks.MethodCheck, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        check(case_of(fault, tmp_path), tmp_path)


@pytest.mark.parametrize("check", checks.METHOD_CHECKS)
def test_the_same_method_without_a_fault_passes(check: checks.MethodCheck, tmp_path: Path) -> None:
    check(case_of("NextToken", tmp_path), tmp_path)


def case_of(name: str, folder: Path) -> Case:
    """A method of `broken.py` under the card it derives from, with half of the context noisy."""
    cards = folder / "cards" / "methods"
    cards.mkdir(parents=True)
    card = BUILT_IN.locations["methods"]["ntp"].path.read_text("utf-8")
    target = "alignbench.methods.ntp:NextToken"
    assert target in card
    (cards / "broken.toml").write_text(card.replace(target, f"tests.helpers.broken_methods:{name}"), "utf-8")
    registry = Registry([*BUILT_IN.roots, ("test", cards.parent)])
    return Case(registry, "broken", assignments=("method.noise=0.5",))
