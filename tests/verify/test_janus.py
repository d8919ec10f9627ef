"""`verify` on a Janus set made by transformers alone: it passes, and notices damage and known mistakes."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from alignbench.backbones.janus.model import Janus
from alignbench.backbones.janus.policy import JanusPolicy
from alignbench.backbones.janus.prompts import PromptTokens
from alignbench.backbones.janus.tokenizer import JanusTokenizer
from alignbench.verify import golden
from alignbench.verify.janus import check
from alignbench.verify.report import CheckReport
from tests.helpers import janus_toys
from tests.verify import janus_set
from tests.verify.test_llamagen import edit

FED = ("vq_ids", "greedy_ids_cfg5")
"""Expected results that are also the input of others."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return janus_set.write_golden(tmp_path_factory.mktemp("golden"), janus_toys.hub_model(seed=5))


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "set"))


def verdicts(report: CheckReport) -> dict[str, str]:
    return {row.name.partition(":")[2]: row.verdict for row in report.checks}


def missed(report: CheckReport) -> set[str]:
    return {name for name, verdict in verdicts(report).items() if verdict not in ("ok", "info")}


def test_every_tensor_is_reproduced(folder: Path) -> None:
    assert golden.kinds_of(folder) == ["janus"]
    report = golden.verify(folder)[f"{folder.name} (janus)"]
    assert report.ok, [row for row in report.checks if row.verdict not in ("ok", "info")]
    listed = Counter(row.name for row in report.checks)
    for file in ("inputs.safetensors", "expected.safetensors"):
        assert all(listed[f"{file}:{name}"] == 1 for name in load_file(folder / file))
    unjudged = {row.name.partition(":")[2] for row in report.checks if row.verdict == "info"}
    assert unjudged == {"image", "corrupt_mask", "corrupted_ids", "vq_ids_unnormalised"}
    logits = [row for row in report.checks if "logits" in row.name]
    assert len(logits) == 8 and all(row.tolerance == 1e-3 for row in logits)


def spoil(tensor: Tensor) -> None:
    """Change one number, by little more than the tolerance where it is a float."""
    wrong = tensor.view(-1)[-1:]
    wrong += 2 if tensor.dtype in (torch.int32, torch.uint8) else 2e-3


def test_every_wrong_number_is_a_miss(copy: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if name not in FED:
                spoil(tensor)

    edit(copy / "expected.safetensors", change)
    names = set(load_file(copy / "expected.safetensors")) - {*FED, "vq_ids_unnormalised"}
    assert missed(check(copy)) == names


@pytest.mark.parametrize("name", FED)
def test_wrong_codes_are_a_miss(name: str, copy: Path) -> None:
    edit(copy / "expected.safetensors", lambda tensors: tensors[name][0, 3].bitwise_xor_(1))
    assert name in missed(check(copy))


def test_what_is_gone_or_unknown_is_noticed(copy: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors["novel"] = torch.zeros(1)
        del tensors["tf_logits_cond_clean"], tensors["ste_grad_vq_latent"]

    edit(copy / "expected.safetensors", change)
    found = verdicts(check(copy))
    assert found["novel"] == "UNKNOWN"
    assert found["tf_logits_cond_clean"] == found["ste_grad_vq_latent"] == "MISSING"


def test_without_inputs_or_text_it_is_not_ok(copy: Path) -> None:
    edit(copy / "inputs.safetensors", lambda tensors: tensors.pop("prompt_ids"))
    report = check(copy)
    assert not report.ok and verdicts(report)["prompt_ids"] == "MISSING"
    assert verdicts(report)["vq_ids"] == "ok", "the rest is still checked"
    path = copy / "meta.json"
    meta = json.loads(path.read_text())
    meta["formatted_prompts"][0] = meta["formatted_prompts"][0].replace(": a", ":a")
    path.write_text(json.dumps(meta))
    assert "'a cat'" in missed(check(copy))
    path.write_text("[")
    assert not check(copy).ok
    (copy / "model.safetensors").unlink()
    assert "holds no weights" in check(copy).checks[0].note


def test_changed_weights_are_noticed(copy: Path) -> None:
    weight = "model.language_model.layers.0.mlp.up_proj.weight"
    edit(copy / "model.safetensors", lambda tensors: tensors[weight].mul_(1.01))
    found = missed(check(copy))
    assert "tf_logits_cond_clean" in found and "recon_pixels" not in found


# --- the known mistakes ---------------------------------------------------------------------------


def unnormalised(tokenizer: JanusTokenizer, latent: Tensor) -> tuple[Tensor, Tensor]:
    """The quantiser of transformers."""
    rows = tokenizer.quantize.get_parameter("embedding.weight")
    points = latent.permute(0, 2, 3, 1)
    tokens = torch.cdist(points.flatten(1, 2), rows[None]).argmin(dim=-1)
    return rows[tokens].transpose(1, 2).unflatten(-1, latent.shape[2:]), tokens


def released(policy: JanusPolicy, condition: Any, context: Tensor) -> Tensor:
    """The alignment of VA-π's released trainer."""
    return policy._as_released(condition.right_padded(), context)


def right_padded(model: Janus, texts: list[str]) -> PromptTokens:
    return model.prompts.encode(texts).right_padded()


def unguided(policy: JanusPolicy, prompts: PromptTokens) -> PromptTokens:
    return prompts


def no_positions(prompts: PromptTokens) -> Tensor:
    return torch.zeros_like(prompts.ids)


@pytest.mark.parametrize(
    ("where", "attribute", "mistake", "wrong"),
    [
        (JanusTokenizer, "quantise", unnormalised, "vq_ids, vq_ids_unnormalised (tripwire)"),
        (JanusPolicy, "forward", released, "tf_logits_cond_clean, tf_logits_cfg5_corrupt"),
        (Janus, "text_condition", right_padded, "prompt_ids, prompt_mask, uncond_prompt_ids"),
        (JanusPolicy, "null", unguided, "greedy_ids_cfg5, tf_logits_cfg5_clean"),
        (PromptTokens, "positions", no_positions, "tf_logits_cond_clean, greedy_step_logits_cfg1"),
    ],
)
def test_a_known_mistake_is_a_miss(
    where: type, attribute: str, mistake: object, wrong: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, attribute, mistake)
    found = missed(check(folder))
    assert set(wrong.split(", ")) <= found
    assert found != set(load_file(folder / "expected.safetensors")), "what the mistake does not touch is ok"
