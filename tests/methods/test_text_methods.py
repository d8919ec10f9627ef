"""Every method on a text-conditioned model, from captioned files to exported weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from alignbench import api, testing
from alignbench.api import Sampling, TextFeatures
from alignbench.backbones.llamagen import model as llamagen
from alignbench.backbones.text.cache import CachedText
from alignbench.errors import UserError
from alignbench.progress import Progress
from alignbench.registry.lookup import Registry
from alignbench.runs import run
from alignbench.testing import Case
from alignbench.training import setup
from tests.helpers.captioned_images import write_folder
from tests.helpers.tiny_t2i import NamedColour, registry
from tests.helpers.tiny_t5 import write_tiny_t5

CPU = torch.device("cpu")
METHODS = Registry.default().names("methods")
CHECKS = {check.__name__: check for check in testing.METHOD_CHECKS}
RUN = "a_resumed_run_is_the_same"
STEP_CHECKS = ("gradients_reach_only_what_trains", "numbers_come_from_addresses")


@pytest.fixture
def cards(tmp_path: Path) -> Registry:
    return registry(tmp_path / "cards")


def case(
    cards: Registry, method: str, folder: Path, *, model: str = "tiny-t2i", more: Sequence[str] = ()
) -> Case:
    """A very short run over ten captioned pictures, with a reward that reads captions where one is asked."""
    root = write_folder(folder / "pictures", 10)
    options = cards.method(method).options
    rewards = {"perceptual": "pixel-l1", "rewards": "named-colour"}
    chosen = [f"method.{name}={value}" for name, value in rewards.items() if name in options]
    smaller = ["method.group_size=3"] if "group_size" in options else []
    return Case(cards, method, model, (f"data.root={root}", *chosen, *smaller, *more))


@pytest.mark.parametrize(
    ("check", "method"),
    # A whole run of one method that reads images and of one that generates.
    [(check, method) for check in STEP_CHECKS for method in METHODS] + [(RUN, "vapi"), (RUN, "ar-grpo")],
)
def test_contract_on_captions(check: str, method: str, cards: Registry, tmp_path: Path) -> None:
    CHECKS[check](case(cards, method, tmp_path), tmp_path / "runs")


def test_rewards_see_the_caption_of_each_sample(
    cards: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[api.ScoreRequest] = []
    score = NamedColour.score

    def watched(self: NamedColour, request: api.ScoreRequest) -> api.Scores:
        seen.append(request)
        return score(self, request)

    monkeypatch.setattr(NamedColour, "score", watched)
    job = case(cards, "ar-grpo", tmp_path).job(tmp_path / "run")
    backbone = setup.build_model(job.plan, CPU)
    method = setup.build_method(job, backbone, CPU)
    condition = backbone.text_condition(["a red circle", "a blue square"])
    with torch.no_grad():
        method.collect(api.Batch(torch.tensor([4, 7]), condition, torch.zeros(2, 3, 16, 16)), 0)
    assert seen[0].texts == ("a red circle",) * 3 + ("a blue square",) * 3
    assert seen[0].group.tolist() == [4] * 3 + [7] * 3 and seen[0].labels is None


def test_t5_features_reach_the_model_and_the_cache(cards: Registry, tmp_path: Path) -> None:
    folder = write_tiny_t5(tmp_path / "t5")
    settings = (f"assets.tiny-t5={folder}",)
    job = case(cards, "vapi", tmp_path, model="tiny-t2i-t5", more=settings).job(tmp_path / "run")
    assert job.plan.problems == [] and job.plan.text is not None and job.plan.text.path == folder
    record = run.run(job, Progress(quiet=True))
    assert record.status == "complete"
    assert record.model.weights["text"] == f"sha256:{job.plan.text.sha256}"
    kept = list((Path(job.cache) / "text").rglob("*.features"))
    assert len(kept) == 6, "six captions, each once"
    backbone = setup.build_model(job.plan, CPU)
    condition = backbone.text_condition(["a photo of a red circle"])
    assert isinstance(condition, TextFeatures) and condition.features.dtype == torch.bfloat16
    again = case(cards, "vapi", tmp_path, model="tiny-t2i-t5", more=settings).job(tmp_path / "again")
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    other = case(cards, "vapi", tmp_path, model="tiny-t2i-t5", more=settings).job(tmp_path / "other")
    assert again.plan.digest == job.plan.digest != other.plan.digest, "another encoder is another run"


def test_a_missing_text_encoder_stops_the_plan(cards: Registry, tmp_path: Path) -> None:
    plan = case(cards, "vapi", tmp_path, model="tiny-t2i-t5").job(tmp_path / "run").plan
    assert [problem.where for problem in plan.problems] == ["assets/tiny-t5"]
    assert "--set assets.tiny-t5=PATH" in plan.problems[0].fix
    plan = case(cards, "vapi", tmp_path, more=("model.text=nowhere",)).job(tmp_path / "run").plan
    assert [problem.where for problem in plan.problems] == ["weights/text"]
    plan = (
        case(cards, "vapi", tmp_path, model="tiny-t2i-t5", more=("model.weights=random",)).job(tmp_path).plan
    )
    assert plan.problems == [], "random weights need no files"
    backbone = setup.build_model(plan, CPU)
    assert backbone.text_condition(["any words"]).texts == ("any words",)


def test_conditions_of_captions(cards: Registry, tmp_path: Path) -> None:
    plan = case(cards, "vapi", tmp_path).job(tmp_path / "run").plan
    backbone = setup.build_model(plan, CPU)
    assert isinstance(backbone, llamagen.LlamaGen) and isinstance(backbone.encoder, CachedText)
    texts = ["a red circle", "a photo of a blue square", ""]
    condition = backbone.text_condition(texts)
    assert condition.texts == tuple(texts) and len(condition) == 3
    twin = backbone.reference()
    context = torch.randint(32, (3, 15), generator=torch.Generator().manual_seed(0))
    together = backbone.logits(condition, context)
    assert torch.equal(twin.logits(twin.text_condition(texts), context), together)
    for row, text in enumerate(texts):  # captions of other lengths change nothing
        alone = backbone.logits(backbone.text_condition([text]), context[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=1e-5)
    assert (together[0] - together[1]).abs().max() > 1e-4 or (context[0] != context[1]).any()


def test_guided_greedy_tokens_are_those_without_a_cache(cards: Registry, tmp_path: Path) -> None:
    plan = case(cards, "vapi", tmp_path).job(tmp_path / "run").plan
    backbone = setup.build_model(plan, CPU)
    assert isinstance(backbone, llamagen.LlamaGen)
    condition = backbone.text_condition(["a red circle", "a photo of a blue square"])
    for scale in (1.0, 3.0):
        sampling = Sampling(cfg_scale=scale, greedy=True)
        cached = backbone.generate(condition, torch.zeros(2, 16), sampling).tokens
        tokens = torch.zeros(2, 16, dtype=torch.int64)
        for place in range(16):
            logits = backbone.sampled_logits(condition, tokens, Sampling(cfg_scale=scale))
            tokens[:, place] = logits[:, place].argmax(dim=-1)
        assert torch.equal(cached, tokens) and len(tokens.unique()) > 1


def test_later_tokens_do_not_reach_earlier_scores(cards: Registry, tmp_path: Path) -> None:
    plan = case(cards, "vapi", tmp_path).job(tmp_path / "run").plan
    backbone = setup.build_model(plan, CPU)
    condition = backbone.text_condition(["a red circle"])
    context = torch.zeros(1, 15, dtype=torch.int64)
    before = backbone.logits(condition, context)
    for place in range(15):
        changed = context.clone()
        changed[0, place] = 7
        after = backbone.logits(condition, changed)
        assert torch.equal(before[:, : place + 1], after[:, : place + 1])
        assert not torch.equal(before[:, place + 1], after[:, place + 1])


def test_classes_read_no_text() -> None:
    card = Registry.default().model("llamagen-tiny")
    with pytest.raises(UserError, match="is class-conditional"):
        llamagen.build(card, None).text_condition(["a"])


def test_a_model_without_encoder_says_so(cards: Registry) -> None:
    with pytest.raises(UserError, match="without a text encoder"):
        llamagen.build(cards.model("tiny-t2i"), None).text_condition(["a"])


def test_protocols_of_prompts_can_be_sampled(cards: Registry, tmp_path: Path) -> None:
    plan = case(cards, "vapi", tmp_path).job(tmp_path / "run").plan
    backbone = setup.build_model(plan, CPU)
    setting = next(iter(plan.protocol.settings.values()))
    condition = backbone.text_condition(["a red circle"])
    drawn = backbone.generate(condition, torch.rand(1, 16), setting.sampling())
    assert drawn.tokens.shape == (1, 16) and torch.isfinite(drawn.logprobs).all()
