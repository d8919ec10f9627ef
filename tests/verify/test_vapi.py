"""The golden check passes on the official numbers, and fails on everything it should fail on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from alignbench.errors import UserError
from alignbench.verify.report import Check, CheckReport
from alignbench.verify.vapi import check

FOLDER = Path(__file__).parents[1] / "golden" / "vapi"
FILE = "vapi_golden_a.safetensors"
Tensors = dict[str, Tensor]
TRIPWIRE = "ce/tripwire_shifted_alignment_loss_f64"


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    return load_file(FOLDER / FILE)


def write(folder: Path, tensors: Tensors, name: str = FILE) -> Path:
    save_file(tensors, folder / name)
    return folder


def row(report: CheckReport, name: str, file_name: str = FILE) -> Check:
    return next(row for row in report.checks if row.name == f"{file_name}:{name}")


def is_result(name: str) -> bool:
    integers = ("noise/noisy_prefix", "noise/replacement_exclusive", "/indices")
    return name.endswith("_f64") or any(part in name for part in integers)


def test_every_official_number_is_reproduced_in_float64(tensors: Tensors) -> None:
    report = check(FOLDER)
    assert report.ok
    compared = {row.name.partition(":")[2]: row for row in report.checks if row.verdict == "ok"}
    assert compared.keys() == {name for name in tensors if is_result(name)}
    for name, compared_row in compared.items():
        if name != TRIPWIRE:
            assert compared_row.error is not None and compared_row.error < 1e-12, name
    listed = {row.name.partition(":")[2] for row in report.checks if row.verdict == "info"}
    assert listed == {name for name in tensors if name.endswith("_official_f32")}


def test_every_wrong_number_is_a_miss(tensors: Tensors, tmp_path: Path) -> None:
    results = [name for name in tensors if is_result(name) and name != TRIPWIRE]
    wrong = {name: tensors[name].clone() for name in results}
    for tensor in wrong.values():
        tensor.view(-1)[-1] += 1 if tensor.dtype == torch.int64 else 1e-4
    report = check(write(tmp_path, {**tensors, **wrong}))
    assert not report.ok
    assert {name for name in results if row(report, name).verdict != "MISS"} == set()


def test_every_tensor_that_is_gone_is_noticed(tensors: Tensors, tmp_path: Path) -> None:
    """Each group in a file of its own, whole and without each of its tensors: who complains is the group."""
    groups: dict[str, Tensors] = defaultdict(dict)
    for name, tensor in tensors.items():
        group = name.partition("/")[0]
        groups["noise" if group == "ce" else group][name] = tensor  # ce reads what noise holds
    for group, whole in groups.items():
        for gone in ("", *(name for name in whole if not name.endswith("_official_f32"))):
            report = check(write(tmp_path, {name: part for name, part in whole.items() if name != gone}))
            rows = [row for row in report.checks if row.name.startswith(FILE)]
            assert any(row.verdict in ("MISSING", "MISS") for row in rows) == bool(gone), gone or group
            names = [row.name for row in rows if row.verdict != "MISSING"]
            assert len(names) == len(set(names)), gone


def test_misaligned_logits_trip_the_wire(tensors: Tensors, tmp_path: Path) -> None:
    ours = tensors["ce/clean/loss_f64"]
    report = check(write(tmp_path, {**tensors, TRIPWIRE: ours.clone()}))
    assert not report.ok
    assert row(report, TRIPWIRE).verdict == "MISS"


def test_unknown_names_are_reported(tensors: Tensors, tmp_path: Path) -> None:
    names = ["policy/entropy_f64", "advantage/g8/surprise", "new/thing"]
    names += ["policy/other_official_f32", "kl/temp1.0/x"]
    report = check(write(tmp_path, {**tensors, **{name: torch.zeros(1) for name in names}}))
    assert not report.ok
    assert {row(report, name).verdict for name in names} == {"UNKNOWN"}


def test_inputs_that_do_not_fit_are_misses_not_crashes(tensors: Tensors, tmp_path: Path) -> None:
    report = check(
        write(tmp_path, {**tensors, "logprob/logits": tensors["logprob/logits"][:, :, :3].clone()})
    )
    assert row(report, "logprob/temp0.7/token_logp_f64").verdict == "MISS"
    assert row(report, "policy/loss_f64").verdict == "ok"


def test_an_empty_folder_and_a_lost_group_are_missing(tensors: Tensors, tmp_path: Path) -> None:
    assert [row.verdict for row in check(tmp_path).checks] == ["MISSING"]
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith("lpips/")}
    report = check(write(tmp_path, rest))
    assert [row.name for row in report.checks if row.verdict == "MISSING"] == ["lpips/*"]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes((FOLDER / FILE).read_bytes()[:1000])
    with pytest.raises(UserError, match=FILE):
        check(tmp_path)


def test_constants_come_from_the_metadata(tensors: Tensors, tmp_path: Path) -> None:
    save_file(tensors, tmp_path / FILE, metadata={"clip_range": "0.1", "advantage_clip": "5.0"})
    report = check(tmp_path)
    assert row(report, "policy/loss_f64").verdict == "MISS"
    assert row(report, "policy/ratio_f64").verdict == "ok"
    with safe_open(FOLDER / FILE, framework="pt") as stream:
        assert stream.metadata()["clip_range"] == "0.2"


def test_a_second_file_of_other_sizes_and_names(tensors: Tensors, tmp_path: Path) -> None:
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
    write(tmp_path, tensors)
    other = "vapi_golden_b.safetensors"
    write(tmp_path, {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}, other)
    report = check(tmp_path)
    assert report.ok
    second = [row for row in report.checks if row.name.startswith(other)]
    assert len(second) == 11
    assert all(row.error is not None and row.error < 1e-12 for row in second)
