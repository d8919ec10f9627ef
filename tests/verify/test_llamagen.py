"""`verify` on the golden LlamaGen set: it passes as it is and notices every kind of damage."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from operator import methodcaller
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from alignbench.backbones.llamagen.transformer import rope_table
from alignbench.errors import UserError
from alignbench.samples.pixels import to_uint8
from alignbench.verify.golden import verify
from alignbench.verify.golden_files import ROUNDING_LIMIT, Alternative, GoldenFile
from alignbench.verify.llamagen import FILES, check
from alignbench.verify.llamagen_networks import grid_of
from alignbench.verify.llamagen_rounding import Evaluations
from alignbench.verify.report import Check, CheckReport

DATA = Path(__file__).parents[1] / "golden" / "llamagen"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy without the tokenizer, whose check takes longest."""
    for name in ("config.json", *(name for name in FILES if not name.startswith("vq_"))):
        shutil.copy(DATA / name, tmp_path / name)
    return tmp_path


def verdicts(report: CheckReport) -> dict[str, str]:
    return {row.name: row.verdict for row in report.checks}


def edit(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_every_tensor_is_reproduced() -> None:
    report = check(DATA)
    assert report.ok, [row for row in report.checks if row.verdict not in ("ok", "info")]
    names = [
        f"{file}:{name}"
        for file in FILES
        if file.endswith("_io.safetensors")
        for name in load_file(DATA / file)
    ]
    listed = Counter(row.name for row in report.checks)
    assert all(listed[name] == 1 for name in names)
    examples = json.loads((DATA / "text_cleaning.json").read_text())
    assert len(report.checks) == len(names) + len(examples)
    unjudged = {row.name.split(":")[1] for row in report.checks if row.verdict == "info"}
    assert unjudged == {
        *("labels", "tokens", "valid", "caption_raw", "mask_raw", "image", "codes"),
        *("filter_in", "to_uint8_in", "resize_in", "sampled_seed0"),
        *(f"crop{index}_in" for index in range(4)),
    }


DAMAGE: dict[str, dict[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "c2i": {
        "cached_logits_cfg2": lambda x: x + 1e-3,
        "greedy_cfg2_interval": lambda x: x + 1,
        "grad/layers.0.attention.wo.weight": lambda x: x * 1.001,
        "tf_loss": lambda x: x.repeat(2),
    },
    "t2i": {"sampling_mask": torch.logical_not},
    "misc": {
        "filter_out/topk0_topp0.9_temp1.0": lambda x: x.clamp(min=-1.0),
        "rope_24x24_hd100_rows": lambda x: x * 0.9,
        "crop1_out": lambda x: x ^ 1,
    },
}
GONE = {"c2i": ["tf_logits_null"], "t2i": ["grad_norm/norm.weight", "tokens"], "misc": ["crop2_out"]}


@pytest.mark.parametrize("part", DAMAGE)
def test_damage_is_noticed_where_it_is(folder: Path, part: str) -> None:
    file = f"{part}_io.safetensors"
    for other in {"c2i", "t2i"} - {part}:
        (folder / f"{other}_weights.safetensors").unlink()  # networks take long

    def bad(change: Callable[[dict[str, torch.Tensor]], object]) -> dict[str, str]:
        edit(folder / file, change)
        rows = [row for row in check(folder).checks if row.name.startswith(file)]
        return {row.name.partition(":")[2]: row.verdict for row in rows if row.verdict not in ("ok", "info")}

    changed = {name: change(load_file(folder / file)[name]) for name, change in DAMAGE[part].items()}
    new = {"novel": torch.ones(1), "grad/x": torch.ones(1)}
    expected = {**dict.fromkeys(changed, "MISS"), **dict.fromkeys(new, "UNKNOWN")}
    assert bad(lambda tensors: tensors.update(changed | new)) == expected
    for name in GONE[part]:
        assert bad(methodcaller("pop", name))[name] == "MISSING"


def test_missing_and_unreadable_files_become_rows(folder: Path) -> None:
    (folder / "t2i_io.safetensors").write_bytes((folder / "t2i_io.safetensors").read_bytes()[:1000])
    (folder / "misc_io.safetensors").write_text("not tensors")
    (folder / "text_cleaning.json").write_text("{")
    (folder / "c2i_weights.safetensors").unlink()
    save_file({"x": torch.ones(1)}, folder / "extra.safetensors")
    assert verdicts(check(folder)) == {
        "c2i_weights.safetensors": "MISSING",
        "vq_weights.safetensors": "MISSING",
        "vq_io.safetensors": "MISSING",
        "extra.safetensors": "UNKNOWN",
        "t2i_io.safetensors": "MISS",
        "misc_io.safetensors": "MISS",
        "text_cleaning.json": "MISS",
    }


def test_weights_that_do_not_fit_are_a_miss(folder: Path) -> None:
    edit(folder / "c2i_weights.safetensors", lambda t: t.update({"layers.0.extra": torch.ones(1)}))
    rows = [row for row in check(folder).checks if row.verdict == "MISS"]
    assert len(rows) == 1 and "layers.0.extra" in rows[0].note


def test_a_folder_without_configuration_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json"):
        check(tmp_path)
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(UserError, match="JSON"):
        check(tmp_path)


def test_a_wrong_configuration_is_a_miss_not_a_crash(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["t2i"]["n_head"]
    config["c2i"]["n_layer"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    found = verdicts(check(folder))
    assert found["t2i_io.safetensors"] == "MISS" and found["c2i_io.safetensors"] == "MISS"
    assert found["misc_io.safetensors:to_uint8_out"] == "ok"


def test_damaged_tokenizer_numbers_are_noticed(tmp_path: Path) -> None:
    for name in ("config.json", "vq_weights.safetensors", "vq_io.safetensors"):
        shutil.copy(DATA / name, tmp_path / name)

    def damage(tensors: dict[str, torch.Tensor]) -> None:
        tensors["nol2_quant"].mul_(1.01)
        tensors["codes_decoded_uint8"][0, :4].bitwise_xor_(1)
        tensors["codebook_used_tail"][-1] += 1
        tensors["grad/quant_conv.weight"].mul_(1.001)

    edit(tmp_path / "vq_io.safetensors", damage)
    missed = {row.name.split(":")[-1] for row in check(tmp_path).checks if row.verdict == "MISS"}
    assert missed == {"nol2_quant", "codes_decoded_uint8", "codebook_used_tail", "grad/quant_conv.weight"}


def test_grid_that_is_not_square_is_read_off_the_rotation_table(tmp_path: Path) -> None:
    path = tmp_path / "c2i_io.safetensors"
    save_file({"rope_table": rope_table((2, 6), 16, 1)}, path)
    config = {"block_size": 12, "dim": 32, "n_head": 2, "cls_token_num": 1, "rope_base": 10000}
    assert grid_of(config, GoldenFile(path, CheckReport())) == (2, 6)


# --- where float32 rounding decides ----------------------------------------------------------------


def judged(folder: Path, expected: torch.Tensor, actual: torch.Tensor, other: Alternative) -> Check:
    save_file({"x": expected}, folder / "x.safetensors")
    report = CheckReport()
    GoldenFile(folder / "x.safetensors", report).compare("x", actual, otherwise=lambda: other)
    (row,) = report.checks
    return row


def amplified(gain: float) -> Evaluations[nn.Linear]:
    """One output of a linear layer, times a large number; its value itself is of order one."""
    layer = nn.Linear(256, 2, bias=False)
    numbers = torch.Generator().manual_seed(0)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(2, 256, generator=numbers))
        layer.weight[1] = layer.weight[0]
        layer.weight[1, 0] += 1.0 / gain
    inputs = torch.ones(256)

    def compute(layer: nn.Linear) -> dict[str, torch.Tensor]:
        first, second = layer(inputs.to(layer.weight.dtype))
        return {"x": gain * (second - first).detach().reshape(1)}

    return Evaluations(layer, compute)


def test_rounding_is_measured_where_it_matters() -> None:
    tame, wild = amplified(1.0).exact("x"), amplified(1e4).exact("x")
    assert tame.value == pytest.approx(1.0, abs=1e-6) and wild.value == pytest.approx(1.0, abs=1e-2)
    assert 0 < tame.rounding < 1e-4 < wild.rounding
    assert tame.value.dtype == torch.float64
    assert amplified(1e4).exact_norm("x").rounding == wild.rounding  # one entry: its size is its norm


@pytest.mark.parametrize(
    ("error", "rounding", "verdict"),
    [
        (0.9e-5, 0.0, "ok"),
        (1e-4, 0.0, "MISS"),
        (1e-4, 0.9e-4, "MISS"),
        (1e-4, 1.1e-4, "ok"),
        (1.1 * ROUNDING_LIMIT, 1.0, "MISS"),
        (float("nan"), 1.0, "MISS"),
    ],
)
def test_rounding_excuses_no_more_than_was_measured(
    tmp_path: Path, error: float, rounding: float, verdict: str
) -> None:
    exact = torch.tensor([1.0, -0.5], dtype=torch.float64)
    other = Alternative(exact, "in float64", rounding)
    row = judged(tmp_path, exact + torch.tensor([0.0, error]).double(), torch.zeros(2), other)
    assert row.verdict == verdict
    assert ("rounding" in row.note) == (verdict == "ok" and rounding > 0)


def test_another_shape_is_not_excused(tmp_path: Path) -> None:
    other = Alternative(torch.ones(3), "in float64", 1.0)
    assert judged(tmp_path, torch.ones(2), torch.ones(3), other).verdict == "MISS"


def test_pixels_may_be_off_only_on_an_edge(tmp_path: Path) -> None:
    edge = (1.0 - 128.0) / 127.5  # the least value shown as 1
    images = torch.tensor([edge, edge, 0.5, -3.0]).reshape(1, 1, 2, 2)
    shown = to_uint8(torch.tensor([edge + 1e-4, edge - 1e-4, 0.5, -3.0])).reshape(1, 2, 2, 1)
    assert shown.flatten().tolist() == [1, 0, 191, 0]
    path = tmp_path / "x.safetensors"
    wrong = shown.clone()
    wrong[0, 1, 0, 0] += 1
    save_file({"shown": shown, "wrong": wrong, "other": shown[:, :1].clone()}, path)
    report = CheckReport()
    expected = GoldenFile(path, report)
    for name in ("shown", "wrong", "other", "absent"):
        expected.pixels(name, images)
    assert [row.verdict for row in report.checks] == ["ok", "MISS", "MISS", "MISSING"]
    assert report.checks[1].error == 1.0


def test_the_device_is_a_choice() -> None:
    reports = verify(DATA.parent / "vapi", device="cpu")
    assert all(report.ok for report in reports.values())
    for device in ("cudo", "cuda:99", "meta"):
        with pytest.raises(UserError, match=f"no device '{device}'"):
            verify(DATA.parent / "vapi", device=device)
