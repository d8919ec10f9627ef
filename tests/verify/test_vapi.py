"""The golden check passes on the official numbers, and fails on everything it should fail on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from alignbench.errors import UserError
from alignbench.verify.report import Report, Row
from alignbench.verify.vapi import check

FOLDER = Path(__file__).parents[1] / "golden" / "vapi"
FILE = "vapi_golden_a.safetensors"
TENSORS = load_file(FOLDER / FILE)
TRIPWIRE = "ce/tripwire_shifted_alignment_loss_f64"


def write(folder: Path, tensors: dict[str, Tensor], name: str = FILE) -> Path:
    save_file(tensors, folder / name)
    return folder


def row(report: Report, name: str, file_name: str = FILE) -> Row:
    return next(row for row in report.rows if row.name == f"{file_name}:{name}")


def is_result(name: str) -> bool:
    integers = ("noise/noisy_prefix", "noise/replacement_exclusive", "/indices")
    return name.endswith("_f64") or any(part in name for part in integers)


def test_every_official_number_is_reproduced_in_float64() -> None:
    report = check(FOLDER)
    assert report.ok
    compared = {row.name.partition(":")[2]: row for row in report.rows if row.verdict == "ok"}
    assert compared.keys() == {name for name in TENSORS if is_result(name)}
    for name, compared_row in compared.items():
        if name != TRIPWIRE:
            assert compared_row.error is not None and compared_row.error < 1e-12, name
    listed = {row.name.partition(":")[2] for row in report.rows if row.verdict == "info"}
    assert listed == {name for name in TENSORS if name.endswith("_official_f32")}


@pytest.mark.parametrize("name", [name for name in sorted(TENSORS) if is_result(name) and name != TRIPWIRE])
def test_a_wrong_number_is_a_miss(name: str, tmp_path: Path) -> None:
    wrong = TENSORS[name].clone()
    wrong.view(-1)[-1] += 1 if wrong.dtype == torch.int64 else 1e-4
    report = check(write(tmp_path, {**TENSORS, name: wrong}))
    assert not report.ok
    assert row(report, name).verdict == "MISS"


@pytest.mark.parametrize("name", [name for name in sorted(TENSORS) if not name.endswith("_official_f32")])
def test_a_tensor_that_is_gone_is_noticed(name: str, tmp_path: Path) -> None:
    report = check(write(tmp_path, {other: tensor for other, tensor in TENSORS.items() if other != name}))
    assert not report.ok
    assert any(row.verdict in ("MISSING", "MISS") for row in report.rows)
    names = [row.name for row in report.rows if row.verdict != "MISSING"]
    assert len(names) == len(set(names))


def test_misaligned_logits_trip_the_wire(tmp_path: Path) -> None:
    ours = TENSORS["ce/clean/loss_f64"]
    report = check(write(tmp_path, {**TENSORS, TRIPWIRE: ours.clone()}))
    assert not report.ok
    assert row(report, TRIPWIRE).verdict == "MISS"


@pytest.mark.parametrize(
    "name",
    ["policy/entropy_f64", "advantage/g8/surprise", "new/thing", "policy/other_official_f32", "kl/temp1.0/x"],
)
def test_unknown_names_are_reported(name: str, tmp_path: Path) -> None:
    report = check(write(tmp_path, {**TENSORS, name: torch.zeros(1)}))
    assert not report.ok
    assert row(report, name).verdict == "UNKNOWN"


def test_inputs_that_do_not_fit_are_misses_not_crashes(tmp_path: Path) -> None:
    report = check(
        write(tmp_path, {**TENSORS, "logprob/logits": TENSORS["logprob/logits"][:, :, :3].clone()})
    )
    assert row(report, "logprob/temp0.7/token_logp_f64").verdict == "MISS"
    assert row(report, "policy/loss_f64").verdict == "ok"


def test_an_empty_folder_and_a_lost_group_are_missing(tmp_path: Path) -> None:
    assert [row.verdict for row in check(tmp_path).rows] == ["MISSING"]
    rest = {name: tensor for name, tensor in TENSORS.items() if not name.startswith("lpips/")}
    report = check(write(tmp_path, rest))
    assert [row.name for row in report.rows if row.verdict == "MISSING"] == ["lpips/*"]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes((FOLDER / FILE).read_bytes()[:1000])
    with pytest.raises(UserError, match=FILE):
        check(tmp_path)


def test_constants_come_from_the_metadata(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / FILE, metadata={"clip_range": "0.1", "advantage_clip": "5.0"})
    report = check(tmp_path)
    assert row(report, "policy/loss_f64").verdict == "MISS"
    assert row(report, "policy/ratio_f64").verdict == "ok"
    with safe_open(FOLDER / FILE, framework="pt") as stream:
        assert stream.metadata()["clip_range"] == "0.2"


def test_a_second_file_of_other_sizes_and_names(tmp_path: Path) -> None:
    """Numbers from numpy for group 3, temperature 1.3, non-square images, other weights and two layers."""
    numbers = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return numbers.standard_normal(shape).astype(np.float32)

    rewards = draw(12)
    groups = rewards.astype(np.float64).reshape(4, 3)
    spread = groups.std(axis=1, ddof=1, keepdims=True) + 1e-8
    advantage = ((groups - groups.mean(axis=1, keepdims=True)) / spread).reshape(-1)
    logits, tokens = draw(2, 5, 7), numbers.integers(0, 7, (2, 5))
    scaled = logits.astype(np.float64) / 1.3
    logp = np.take_along_axis(scaled, tokens[..., None], -1)[..., 0] - np.log(np.exp(scaled).sum(-1))
    reference, decoded, perceptual = draw(2, 3, 4, 6), draw(6, 3, 4, 6), draw(6)
    difference = decoded.astype(np.float64) - reference.astype(np.float64).repeat(3, axis=0)
    arrays = {
        "advantage/g3/rewards": rewards,
        "advantage/g3/advantage_f64": advantage,
        "advantage/g3/advantage_clipped5_f64": advantage.clip(-5, 5),
        "logprob/logits": logits,
        "logprob/temp1.3/tokens": tokens,
        "logprob/temp1.3/token_logp_f64": logp,
        "logprob/temp1.3/sequence_logp_f64": logp.sum(-1),
        "reward/reference_images": reference,
        "reward/decoded_images": decoded,
        "reward/perceptual_distance": perceptual,
    }
    sizes: dict[str, Callable[[np.ndarray], np.ndarray]] = {"l2": np.square, "l1": np.abs}
    for loss, size in sizes.items():
        pixel = size(difference).mean(axis=(1, 2, 3))
        arrays |= {
            f"reward/{loss}/pixel_loss_f64": pixel,
            f"reward/{loss}/reward_pixel_only_f64": -pixel,
            f"reward/{loss}/reward_pixel0.25_perceptual3_f64": -(0.25 * pixel + 3 * perceptual.astype(float)),
        }
    total = np.zeros(2)
    for layer, (channels, height, width) in enumerate([(5, 3, 4), (9, 2, 2)]):
        a, b, weights = (
            draw(2, channels, height, width),
            draw(2, channels, height, width),
            abs(draw(channels)),
        )
        a[0, :, 0, 0] = 0
        units = [
            x.astype(np.float64) / (np.sqrt((x.astype(np.float64) ** 2).sum(1, keepdims=True)) + 1e-10)
            for x in (a, b)
        ]
        squares = (units[0] - units[1]) ** 2 * weights.astype(np.float64)[:, None, None]
        total += squares.sum(axis=1).mean(axis=(1, 2))
        arrays |= {
            f"lpips/layer{layer}/features_a": a,
            f"lpips/layer{layer}/features_b": b,
            f"lpips/layer{layer}/channel_weights": weights,
        }
    arrays["lpips/distance_f64"] = total
    write(tmp_path, TENSORS)
    other = "vapi_golden_b.safetensors"
    write(tmp_path, {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}, other)
    report = check(tmp_path)
    assert report.ok
    second = [row for row in report.rows if row.name.startswith(other)]
    assert len(second) == 11
    assert all(row.error is not None and row.error < 1e-12 for row in second)
