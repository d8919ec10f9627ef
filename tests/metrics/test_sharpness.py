"""Power spectrum and Laplacian against closed forms of plane waves and white noise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from alignbench.metrics.sharpness import laplacian_energy, luminance, power_spectrum

AMPLITUDE = 0.3


def wave(side: int, cycles: float, axis: int) -> np.ndarray:
    """A·cos(2π f x) along one axis, [1, side, side], with f = cycles / side."""
    line = 0.5 + AMPLITUDE * np.cos(2 * np.pi * cycles / side * np.arange(side))
    return np.broadcast_to(line if axis else line[:, None], (1, side, side))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("cycles", [3, 5, 9])
def test_a_plane_wave_has_its_power_at_its_frequency(cycles: int, axis: int) -> None:
    """A periodic Hann window spreads a line of A/2 over 3×3 points: 1, 1/2, 1/4 of (A/2)·(side/2)² each."""
    side = 32
    frequencies, power = power_spectrum(wave(side, cycles, axis))
    assert frequencies.tolist() == [b / side for b in range(1, side // 2 + 1)]
    assert frequencies[power[0].argmax()] == cycles / side
    ring: dict[int, list[float]] = {}
    for u in range(-side // 2, side // 2):
        for v in range(-side // 2, side // 2):
            near = abs(abs(u) - cycles), abs(v)
            height = 2.0 ** -sum(near) if max(near) <= 1 else 0.0
            ring.setdefault(round(math.hypot(u, v)), []).append(
                (height * AMPLITUDE / 2 * (side / 2) ** 2) ** 2
            )
    window = (3 * side / 8) ** 2
    wanted = [math.fsum(ring[b]) / len(ring[b]) / window for b in range(1, side // 2 + 1)]
    np.testing.assert_allclose(power[0], wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("period", [4, 8, 16])
def test_the_laplacian_of_a_plane_wave(period: int) -> None:
    """It is (2 - 2 cos 2πf) times the wave; the inner pixels are whole periods."""
    side = 2 * period + 2
    grey = wave(side, side / period, axis=1)
    wanted = (2 - 2 * math.cos(2 * math.pi / period)) ** 2 * AMPLITUDE**2 / 2
    assert laplacian_energy(grey)[0] == pytest.approx(wanted, rel=1e-12)


def test_white_noise_has_its_variance_everywhere_and_a_constant_nothing() -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal((4000, 16, 16))
    _, power = power_spectrum(noise)
    wanted = [0.01 * (1 - 5 / 72), *[0.01] * 7]  # the mean's share of the lowest ring under this window
    np.testing.assert_allclose(power.mean(axis=0), wanted, rtol=0.015)
    assert laplacian_energy(noise).mean() == pytest.approx(20 * 0.01, rel=0.02)
    constant = np.full((1, 8, 8), 0.7)
    assert laplacian_energy(constant)[0] == 0 and power_spectrum(constant)[1].max() < 1e-25


def test_luminance_is_weighted() -> None:
    colours = np.zeros((4, 3, 2, 2), dtype=np.uint8)
    for channel in range(3):
        colours[channel, channel] = 255
    colours[3] = 51
    np.testing.assert_allclose(luminance(colours)[:, 0, 0], [0.299, 0.587, 0.114, 0.2], rtol=1e-12)
