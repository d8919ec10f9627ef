"""Methods on the text-conditioned embedded model, whose captions may also be read by a T5."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from alignbench import api
from alignbench.api import TextFeatures
from alignbench.backbones.llamagen import model as llamagen
from alignbench.backbones.text.cache import CachedText
from alignbench.errors import UserError
from alignbench.progress import Progress
from alignbench.registry.lookup import Registry
from alignbench.rewards.shapes import ShapesReward
from alignbench.runs import run
from alignbench.testing import Case, Subject
from alignbench.training import setup
from tests.helpers.tiny_t5 import write_tiny_t5

CPU = torch.device("cpu")
SHAPES = Registry.default().model("shapes-tiny")
OWN_TEXT = 'target = "alignbench.backbones.text.words:build"'
T5_TEXT = 'target = "alignbench.backbones.text.t5:build"\nasset = "tiny-t5"\npackages = ["transformers"]'
T5_ASSET = """\
title = "tiny T5"
summary = "Random weights."
what = "network"
file = "."
files = ["config.json", "tokenizer.json", "model.safetensors"]
"""


@pytest.fixture
def cards(tmp_path: Path) -> Registry:
    """The built-in cards and `shapes-t5`, the embedded model with a T5 in place of its words."""
    built_in = Registry.default()
    text = built_in.locations["models"]["shapes-tiny"].path.read_text(encoding="utf-8")
    files, own_words = text.rsplit("[[files]]", 1)
    assert OWN_TEXT in files and 'role = "text"' in own_words
    for name, content in {
        "models/shapes-t5": files.replace(OWN_TEXT, T5_TEXT),
        "assets/tiny-t5": T5_ASSET,
    }.items():
        path = tmp_path / "cards" / f"{name}.toml"
        path.parent.mkdir(parents=True)
        path.write_text(content, encoding="utf-8")
    return Registry([*built_in.roots, ("test", tmp_path / "cards")])


def case(cards: Registry, model: str = "shapes-tiny", *more: str) -> Case:
    without = ("method.perceptual=none", "method.perceptual_weight=0")
    return Case(cards, "vapi", model, (*without, *more))


def test_rewards_see_the_caption_of_each_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[api.ScoreRequest] = []

    def watched(self: ShapesReward, request: api.ScoreRequest) -> api.Scores:
        seen.append(request)
        return api.Scores(torch.arange(6.0), torch.ones(6, dtype=torch.bool))

    monkeypatch.setattr(ShapesReward, "score", watched)
    job = Case(Registry.default(), "ar-grpo", "shapes-tiny", ("method.group_size=3",)).job(tmp_path)
    backbone = setup.build_model(job.plan, CPU)
    method = setup.build_method(job, backbone, CPU)
    condition = backbone.text_condition(["a red circle", "a blue square"])
    with torch.no_grad():
        method.collect(api.Batch(torch.tensor([4, 7]), condition, torch.zeros(2, 3, 20, 20)), 0)
    assert seen[0].texts == ("a red circle",) * 3 + ("a blue square",) * 3
    assert seen[0].group.tolist() == [4] * 3 + [7] * 3 and seen[0].labels is None


@pytest.mark.slow
def test_t5_features_reach_the_model_and_the_cache(cards: Registry, tmp_path: Path) -> None:
    assert SHAPES.policy.caption_dim is not None
    folder = write_tiny_t5(tmp_path / "t5", width=SHAPES.policy.caption_dim)
    asset = f"assets.tiny-t5={folder}"
    job = case(cards, "shapes-t5", asset).job(tmp_path / "run")
    assert job.plan.problems == [] and job.plan.text is not None and job.plan.text.path == folder
    record = run.run(job, Progress(quiet=True))
    assert record.status == "complete"
    assert record.model.weights["text"] == f"sha256:{job.plan.text.sha256}"
    kept = list((Path(job.cache) / "text").rglob("*.features"))
    subject = Subject.build(case(cards, "shapes-t5", asset), tmp_path / "run")
    with subject.stream() as stream:
        captions = {text for step in range(4) for text in stream.batch(step, 0, 1).condition.texts}
    assert len(kept) == len(captions) > 8, "each caption once"
    backbone = subject.backbone
    condition = backbone.text_condition(["a photo of a red circle"])
    assert isinstance(condition, TextFeatures) and condition.features.dtype == torch.bfloat16
    again = case(cards, "shapes-t5", asset).job(tmp_path / "again")
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    other = case(cards, "shapes-t5", asset).job(tmp_path / "other")
    assert again.plan.digest == job.plan.digest != other.plan.digest, "another encoder is another run"


def test_a_missing_text_encoder_stops_the_plan(cards: Registry, tmp_path: Path) -> None:
    plan = case(cards, "shapes-t5").job(tmp_path).plan
    assert [problem.where for problem in plan.problems] == ["assets/tiny-t5"]
    assert "--set assets.tiny-t5=PATH" in plan.problems[0].fix
    plan = case(cards, "shapes-tiny", "model.text=nowhere").job(tmp_path).plan
    assert [problem.where for problem in plan.problems] == ["weights/text"]
    plan = case(cards, "shapes-t5", "model.weights=random").job(tmp_path).plan
    assert plan.problems == [], "random weights need no files"
    backbone = setup.build_model(plan, CPU)
    assert backbone.text_condition(["any words"]).texts == ("any words",)


def test_conditions_of_captions(tmp_path: Path) -> None:
    backbone = setup.build_model(case(Registry.default()).job(tmp_path).plan, CPU)
    assert isinstance(backbone, llamagen.LlamaGen) and isinstance(backbone.encoder, CachedText)
    texts = ["a red circle", "a circle above a blue square", ""]
    condition = backbone.text_condition(texts)
    assert condition.texts == tuple(texts) and len(condition) == 3
    twin = backbone.reference()
    context = torch.randint(192, (1, 24), generator=torch.Generator().manual_seed(0)).repeat(3, 1)
    together = backbone.logits(condition, context)
    assert torch.equal(twin.logits(twin.text_condition(texts), context), together)
    for row, text in enumerate(texts):  # captions of other lengths change nothing
        alone = backbone.logits(backbone.text_condition([text]), context[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=1e-5)
    assert (together[0] - together[1]).abs().max() > 1e-4


def test_models_that_read_no_text_say_so() -> None:
    with pytest.raises(UserError, match="is class-conditional"):
        llamagen.build(Registry.default().model("llamagen-tiny"), None).text_condition(["a"])
    with pytest.raises(UserError, match="without a text encoder"):
        llamagen.build(SHAPES, None).text_condition(["a"])
