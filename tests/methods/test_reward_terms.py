"""The grammar of rewards and the maths of mixing them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from alignbench.errors import UserError
from alignbench.methods.groups import compare
from alignbench.methods.image_rewards import combine_raw
from alignbench.registry.reward_spec import Spec, parse_spec, parse_terms
from tests.methods.test_policy_gradient import OPTIONS

NAN = float("nan")


def test_terms_are_specs_with_weights() -> None:
    assert parse_terms("clip-score|scale(5)|clip(0,1)@1.0, hpsv2.1@-0.5,pixel-mse") == [
        ("clip-score|scale(5)|clip(0,1)", 1.0),
        ("hpsv2.1", -0.5),
        ("pixel-mse", 1.0),
    ]


def test_quotes_protect_everything_the_grammar_uses() -> None:
    text = 'vlm-judge(question="Sharp, (and) complete@home|?", batch=4)|negate'
    assert parse_terms(f"{text}@2, a") == [(text, 2.0), ("a", 1.0)]
    assert parse_spec(text) == Spec(
        "vlm-judge", {"question": "Sharp, (and) complete@home|?", "batch": "4"}, (("negate", ()),)
    )


def test_a_spec_keeps_the_order_of_its_transforms() -> None:
    spec = parse_spec("clip-score( path=/a/b@c ) | scale(-5e-1) | clip( 0 , 1 )")
    assert spec == Spec("clip-score", {"path": "/a/b@c"}, (("scale", (-0.5,)), ("clip", (0.0, 1.0))))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "'' is not of the form"),
        ("a,,b", "'' is not of the form"),
        ("@1", "'@1' is not of the form"),
        ("a@1@2", "is not of the form"),
        ("a@x", "weight of a is 'x'"),
        ("a@nan", "weight of a is 'nan'"),
        ("a@0", "weight of a is '0'"),
        ("a, b, a@2", "a is named twice"),
        ("a|scale(", "do not match"),
        ("a)b(", "do not match"),
        ('a(b="c)', "do not match"),
        ("a|scale(x)", "'x' in 'scale\\(x\\)' is not a finite number"),
        ("a|scale(inf)", "is not a finite number"),
        ("a|", "cannot read ''"),
        ("a b", "cannot read 'a b'"),
        ("a(b)", "'b' is not of the form option=value"),
        ("a(b=1,b=2)", "'b=2' is not of the form option=value, each option once"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        parse_terms(text)


# --- mixing ---------------------------------------------------------------------------------------


def scores() -> tuple[list[Tensor], list[Tensor]]:
    """Two terms, two groups of four; one score of each term is missing in the first group."""
    values = [
        torch.tensor([[1.0, NAN, 3.0, 8.0], [2.0, 2.0, 2.0, 2.0]], dtype=torch.float64),
        torch.tensor([[0.1, 0.5, 0.2, NAN], [0.4, 0.1, 0.3, 0.2]], dtype=torch.float64),
    ]
    return values, [~part.isnan() for part in values]


def z(values: list[float]) -> np.ndarray:
    array = np.array(values)
    return np.asarray((array - array.mean()) / array.std(ddof=1))


def test_a_raw_sum_is_a_sum_and_needs_every_part() -> None:
    mixed = combine_raw(*scores(), [2.0, -10.0])
    assert mixed.valid.tolist() == [[True, False, True, False], [True] * 4]
    assert mixed.values[0].isnan().tolist() == [False, True, False, True]
    assert mixed.values[mixed.valid].tolist() == pytest.approx([1.0, 4.0, 0.0, 3.0, 1.0, 2.0])


def test_normalised_parts_use_their_own_valid_scores() -> None:
    mixed = compare(*scores(), [2.0, -1.0], OPTIONS)
    assert mixed.valid.tolist() == [[True, False, True, False], [True] * 4]
    first, second = z([1.0, 3.0, 8.0]), z([0.1, 0.5, 0.2])
    expected = [2 * first[0] - second[0], 0.0, 2 * first[1] - second[2], 0.0]
    assert mixed.advantages[0].tolist() == pytest.approx(expected, abs=1e-6)
    # The first term has no spread in the second group: it must add nothing, not noise.
    assert mixed.advantages[1].tolist() == pytest.approx(list(-z([0.4, 0.1, 0.3, 0.2])), abs=1e-6)


def test_what_a_failed_score_holds_never_matters() -> None:
    values, valid = scores()
    poisoned = [part.nan_to_num(nan=1e6) for part in values]
    mixed = [combine_raw(one, valid, [1.0, 2.0]) for one in (values, poisoned)]
    compared = [compare(one, valid, [1.0, 2.0], OPTIONS) for one in (values, poisoned)]
    for expected, result in (mixed, compared):
        assert torch.equal(expected.valid, result.valid)
        assert torch.allclose(expected[0], result[0], rtol=0, atol=1e-12, equal_nan=True)


def test_a_single_valid_score_is_the_mean_of_its_group() -> None:
    value, valid = torch.tensor([[5.0, NAN]]), torch.tensor([[True, False]])
    mixed = compare([value], [valid], [1.0], OPTIONS)
    assert mixed.advantages[0, 0].item() == 0.0 and mixed.valid.tolist() == [[True, False]]
