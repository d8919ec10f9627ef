"""The transform chain."""

from __future__ import annotations

import pytest
import torch

from alignbench.errors import UserError
from alignbench.rewards import transforms

VALUES = torch.tensor([-0.25, 0.0, 0.29, 0.3, 0.55, 0.75, 1.2])


@pytest.mark.parametrize(
    ("chain", "expected"),
    [
        ([], [-0.25, 0.0, 0.29, 0.3, 0.55, 0.75, 1.2]),
        ([("scale", (2.0,))], [-0.5, 0.0, 0.58, 0.6, 1.1, 1.5, 2.4]),
        ([("shift", (-1.0,))], [-1.25, -1.0, -0.71, -0.7, -0.45, -0.25, 0.2]),
        ([("negate", ())], [0.25, 0.0, -0.29, -0.3, -0.55, -0.75, -1.2]),
        ([("clip", (0.0, 0.5))], [0.0, 0.0, 0.29, 0.3, 0.5, 0.5, 0.5]),
        ([("quantise", (0.5,))], [0.0, 0.0, 0.5, 0.5, 0.5, 1.0, 1.0]),
        ([("levels", (-1.0, 0.0, 0.5, 0.3, 1.0, 0.6, 1.5))], [-1.0, 0.5, 0.5, 1.0, 1.0, 1.5, 1.5]),
        # The order matters: scaled first, then limited.
        ([("scale", (5.0,)), ("clip", (0.0, 1.0))], [0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ([("clip", (0.0, 1.0)), ("scale", (5.0,))], [0.0, 0.0, 1.45, 1.5, 2.75, 3.75, 5.0]),
    ],
)
def test_each_transform_does_what_its_name_says(chain: transforms.Transforms, expected: list[float]) -> None:
    transforms.check(chain)
    assert transforms.apply(chain, VALUES).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", transforms.TRANSFORMS)
def test_no_score_stays_no_score_and_smooth_is_what_has_a_gradient(name: str) -> None:
    numbers = {"clip": (0.0, 1.0), "levels": (0.0, 0.5, 1.0), "negate": ()}.get(name, (0.1,))
    values = torch.tensor([0.33, float("nan")], requires_grad=True)
    changed = transforms.apply([(name, numbers)], values)
    assert changed.isnan().tolist() == [False, True] and changed.dtype == torch.float32
    gradient = torch.autograd.grad(changed[0], values)[0][0].item() if changed.requires_grad else 0.0
    assert (gradient != 0) == transforms.smooth([(name, numbers)])


@pytest.mark.parametrize(
    ("chain", "reason"),
    [
        ([("scael", (2.0,))], "no transform named 'scael'. Did you mean scale"),
        ([("scale", ())], "scale takes 1 numbers, not 0"),
        ([("clip", (1.0,))], "clip takes 2 numbers, not 1"),
        ([("clip", (1.0, 1.0))], "1 is not below 1"),
        ([("scale", (0.0,))], "makes all scores equal"),
        ([("quantise", (0.0,))], "must be above 0"),
        ([("levels", (1.0, 2.0))], "rising edges"),
        ([("levels", (1.0, 0.5, 2.0, 0.5, 3.0))], "rising edges"),
        ([("levels", (1.0, 0.5, 2.0, 0.4, 3.0))], "rising edges"),
    ],
)
def test_wrong_chains_are_refused_with_the_reason(chain: transforms.Transforms, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        transforms.check(chain)
