"""ImageReward and PickScore as evaluators, against their networks alone on pictures prepared by PIL."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from alignbench.api import ScoreRequest
from alignbench.nets.preprocess import OPENAI_MEAN, OPENAI_STD
from alignbench.registry.lookup import Registry
from alignbench.registry.reward_spec import resolve
from alignbench.rewards.build import build
from tests.evaluators.test_text_image import PROMPTS, SHAPES, batch_of, built, pictures, rows_of
from tests.helpers.command import alignbench
from tests.helpers.tiny_rewards import save_clip
from tests.nets.test_image_reward import oracle, save_small

REGISTRY = Registry.default()
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """{evaluator: its assets}: small random networks, in each folder only what the asset lists."""
    base = tmp_path_factory.mktemp("preference")
    save_small(base / "imagereward")
    save_clip(base / "clip")
    found = {"imagereward": [base / "imagereward" / "ImageReward.pt", base / "imagereward"], "pickscore": []}
    for asset in REGISTRY.evaluator("pickscore").assets:
        (base / asset).mkdir()
        for names in REGISTRY.asset(asset).files:
            chosen = next(
                base / "clip" / name for name in names.split("|") if (base / "clip" / name).exists()
            )
            shutil.copy(chosen, base / asset)
        found["pickscore"].append(base / asset)
    return found


def prepared(images: Tensor) -> Tensor:
    """As the official programs do: torchvision on PIL images, 32 px for these networks."""
    from torchvision import transforms

    prepare = transforms.Compose(
        [
            transforms.Resize(32, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize(OPENAI_MEAN, OPENAI_STD),
        ]
    )
    return torch.stack([prepare(Image.fromarray(image.permute(1, 2, 0).numpy())) for image in images])


def image_reward_alone(paths: list[Path], images: Tensor) -> Tensor:
    from transformers import BertTokenizer

    words: Any = BertTokenizer.from_pretrained(paths[1])
    tokens = words(list(PROMPTS), padding="max_length", truncation=True, max_length=35, return_tensors="pt")
    state = torch.load(paths[0], weights_only=True)
    return oracle(state, prepared(images), tokens["input_ids"], tokens["attention_mask"])


def pickscore_alone(paths: list[Path], images: Tensor) -> Tensor:
    from transformers import CLIPModel, CLIPTokenizer

    words: Any = CLIPTokenizer.from_pretrained(paths[1])
    tokens = words(list(PROMPTS), padding=True, truncation=True, max_length=77, return_tensors="pt")
    with torch.no_grad():
        output = CLIPModel.from_pretrained(paths[0])(pixel_values=prepared(images), **tokens)
    scores: Tensor = output.logits_per_image.diagonal()
    return scores


ALONE = {"imagereward": image_reward_alone, "pickscore": pickscore_alone}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ALONE)
def test_scores_are_those_of_the_networks_alone(
    name: str, shape: tuple[int, int], networks: dict[str, list[Path]]
) -> None:
    expected = ALONE[name](networks[name], pictures(shape))
    rows = built(name, *networks[name], batch=4).measure(batch_of(pictures(shape)))
    assert expected.std() > 0.1
    assert np.abs(rows["score"] - expected.numpy()).max() < 1e-4


@pytest.mark.parametrize("name", ALONE)
def test_metrics_from_stored_shards(name: str, networks: dict[str, list[Path]], tmp_path: Path) -> None:
    evaluator = built(name, *networks[name])
    rows = rows_of(evaluator, batch_of(pictures()), tmp_path)
    mean, truncated = evaluator.score(rows, None)
    facts = REGISTRY.evaluator(name).metrics
    assert list(facts) == [mean.name, truncated.name] == [name, f"{name}-truncated"]
    assert (mean.n, truncated.value) == (6, 2.0)
    assert rows.column("truncated").tolist() == [len(text) > 76 for text in PROMPTS]
    assert mean.interval is not None and mean.interval[0] < mean.value < mean.interval[1]
    assert mean.value == pytest.approx(rows.column(facts[name].column).mean(), rel=1e-12)
    other = [*networks[name][:-1], shutil.copytree(networks[name][-1], tmp_path / "other")]
    assert built(name, *other, batch=1).identity == evaluator.identity
    with (tmp_path / "other" / "tokenizer_config.json").open("a") as file:
        file.write("\n")
    assert built(name, *other).identity != evaluator.identity


@pytest.mark.parametrize("name", ALONE)
def test_evaluator_and_reward_agree_and_name_one_network(name: str, networks: dict[str, list[Path]]) -> None:
    """The reward resizes without rounding to bytes."""
    if name == "pickscore":
        for file in networks[name][1].iterdir():
            shutil.copy(file, networks[name][0])
    places = {"imagereward": "path={},tokenizer={}", "pickscore": "path={}"}[name].format(*networks[name])
    reward = build(f"{name}({places})", REGISTRY, CPU, image_size=40)
    request = ScoreRequest(images=pictures().float() / 255, group=torch.arange(6), texts=PROMPTS)
    ours = built(name, *networks[name]).measure(batch_of(pictures()))["score"]
    found = reward.score(request).values.double().numpy()
    assert np.abs(ours - found).max() < 0.05 * ours.std()
    assert resolve(name, REGISTRY).networks == REGISTRY.evaluator(name).metrics[name].networks


@pytest.mark.slow
def test_a_method_trained_on_imagereward_is_marked_where_it_scores(
    networks: dict[str, list[Path]], tmp_path: Path
) -> None:
    (tmp_path / "prompts.json").write_text(json.dumps(["a red circle", "two squares"]))
    assets = dict(zip(REGISTRY.evaluator("imagereward").assets, networks["imagereward"], strict=True))
    assets |= dict(zip(REGISTRY.evaluator("pickscore").assets, networks["pickscore"], strict=True))
    assets["drawbench-prompts"] = tmp_path / "prompts.json"
    files = [part for name, path in assets.items() for part in ("--set", f"assets.{name}={path}")]
    done = alignbench(
        *("run", "--method", "ar-grpo", "--model", "shapes-tiny", "--steps", "1", "--out", tmp_path / "run"),
        *("--set", "method.rewards=imagereward@1", "--set", "train.images_per_step=2"),
        *("--set", "train.micro_batch=2", "--protocol", "drawbench-preference", *files),
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    marked = {x["subject"]: x["networks_used_as_reward"] for x in record["results"]}
    assert marked == {"base": [], "method": ["THUDM/ImageReward"]}
    board = alignbench("leaderboard", tmp_path / "run", "--format", "markdown").stdout.splitlines()
    base, trained = ([cell.strip() for cell in line.split("|")] for line in board if "| CFG 7.5 |" in line)
    assert [cell[-1:] for cell in base if "±" in cell] == ["*", "*"], "neither is marked"
    assert ["†" in cell for cell in trained if "±" in cell] == [True, False]
