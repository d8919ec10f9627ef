"""Crops against pictures made by the official code, and their edges."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from alignbench.data.crops import center_crop_adm, random_crop_adm

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "images" / "adm_crops.safetensors")


@pytest.mark.parametrize(("number", "size"), [(0, 32), (1, 48), (2, 32), (3, 30)])
def test_centre_crop_equals_the_official_one(number: int, size: int) -> None:
    cropped = center_crop_adm(Image.fromarray(GOLDEN[f"crop{number}_in"]), size)
    np.testing.assert_array_equal(np.asarray(cropped), GOLDEN[f"crop{number}_out"])


def test_random_crop_equals_the_official_one() -> None:
    cropped = random_crop_adm(Image.fromarray(GOLDEN["crop0_in"]), 32, random.Random(123))
    np.testing.assert_array_equal(np.asarray(cropped), GOLDEN["random_crop0_seed123_size32"])


def test_an_image_of_the_right_size_is_left_alone() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(center_crop_adm(Image.fromarray(pixels), 16)), pixels)


def test_an_odd_margin_is_cut_at_the_end() -> None:
    pixels = np.arange(4 * 7, dtype=np.uint8).reshape(4, 7)
    cropped = np.asarray(center_crop_adm(Image.fromarray(pixels), 4))
    np.testing.assert_array_equal(cropped, pixels[:, 1:5])
