"""Random numbers are functions of their address, and inverse-CDF draws follow the distribution."""

from __future__ import annotations

import numpy as np
import torch

from alignbench import randomness

PINNED = [0.9984056742983813, 0.23268049393821655]


def test_numbers_do_not_depend_on_the_company_they_are_drawn_in() -> None:
    together = randomness.uniforms(3, "purpose", 5, [7, 8, 9], (4,))
    alone = randomness.uniforms(3, "purpose", 5, [8], (4,))
    assert np.array_equal(together[1], alone[0])
    assert together.shape == (3, 4) and together.dtype == np.float64
    assert ((together >= 0) & (together < 1)).all()


def test_every_part_of_the_address_matters() -> None:
    base = randomness.uniforms(3, "purpose", 5, [7], (4,))
    others = [
        randomness.uniforms(4, "purpose", 5, [7], (4,)),
        randomness.uniforms(3, "other", 5, [7], (4,)),
        randomness.uniforms(3, "purpose", 6, [7], (4,)),
        randomness.uniforms(3, "purpose", 5, [6], (4,)),
    ]
    assert not any(np.array_equal(base, other) for other in others)


def test_numbers_are_pinned() -> None:
    """A change of the scheme would silently change every result."""
    drawn = randomness.uniforms(0, "pin", 1, [2], (2,))[0]
    assert drawn.tolist() == PINNED


def test_inverse_cdf_frequencies() -> None:
    probabilities = torch.tensor([0.1, 0.0, 0.6, 0.3], dtype=torch.float64)
    uniform = torch.from_numpy(randomness.uniforms(0, "freq", 0, [0], (200_000,)))[0]
    drawn = randomness.inverse_cdf(probabilities, uniform)
    shares = torch.bincount(drawn, minlength=4).double() / len(drawn)
    assert torch.allclose(shares, probabilities, atol=5 / 200_000**0.5)
    assert shares[1] == 0


def test_inverse_cdf_never_returns_an_impossible_code() -> None:
    probabilities = torch.tensor([0.0, 0.3, 0.7, 0.0, 0.0])
    edges = torch.tensor([0.0, 0.3, 1 - 2**-53], dtype=torch.float64)
    assert randomness.inverse_cdf(probabilities, edges).tolist()[0] == 1
    assert set(randomness.inverse_cdf(probabilities, edges).tolist()) <= {1, 2}


def test_torch_seed_is_local() -> None:
    device = torch.device("cpu")
    torch.manual_seed(1)
    before = torch.rand(3)
    torch.manual_seed(1)
    with randomness.torch_seed(device, 0, "block", 4):
        inside = torch.rand(3)
    assert torch.equal(torch.rand(3), before)
    with randomness.torch_seed(device, 0, "block", 4):
        assert torch.equal(torch.rand(3), inside)
