"""Every method trains a tiny Janus: nothing in a method knows which backbone it has."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from alignbench import api
from alignbench.backbones.base import unwrap
from alignbench.backbones.janus.model import Janus, build
from alignbench.backbones.janus.policy import Fidelity
from alignbench.methods.logits import exchange_rows, same_rows
from alignbench.registry.lookup import Registry
from alignbench.rewards.pixel import PixelDistance
from alignbench.rewards.requests import all_valid
from alignbench.testing import METHOD_CHECKS, Case
from alignbench.training import setup
from tests.helpers import janus_toys
from tests.helpers.method_checks import METHOD_CHECKS as MORE_CHECKS
from tests.methods.test_vapi import built

REGISTRY = Registry.default()
METHODS = [name for name in REGISTRY.names("methods") if "text" in REGISTRY.method(name).conditions]
CAPTIONS = ["a red circle", "two blue squares", "a green triangle", "nothing"]
CHANGES: dict[str, dict[str, Any]] = {
    **{name: {"rewards": "toy", "group_size": 3, "cfg_scale": 2.0} for name in ("ar-grpo", "raft", "pairs")},
    "cca": {"null_share": 0.5},
    "gft": {"null_share": 0.5},
    "vapi": {"noise": 0.95, "group_size": 4},
}


class Toy(PixelDistance):
    """Brightness, and the squared distance to a reference."""

    def score(self, request: api.ScoreRequest) -> api.Scores:
        assert request.texts and len(request.texts) == len(request.images), "captions reach rewards"
        return all_valid(request.images.mean(dim=(1, 2, 3)))


WEIGHED = {"token_weights": "critical(0.2,0.2,0.2)*divergence*contrast*opposite", "preset": "faithful"}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "more"), [*((name, {}) for name in METHODS), ("ar-grpo", WEIGHED)])
def test_every_method_trains_it(name: str, more: dict[str, Any]) -> None:
    model = build(janus_toys.CARD, None, seed=2)
    method = built(name, model, reward=lambda spec: Toy("mse"), **CHANGES.get(name, {}), **more)
    policy = {key: value.clone() for key, value in model.policy.state_dict().items()}
    codes = {key: value.clone() for key, value in model.tokenizer.state_dict().items()}
    module = setup.trained_module(model, method.updates)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    images = torch.rand(4, 3, 20, 20, generator=torch.Generator().manual_seed(0)) * 2 - 1
    both = model.text_condition([*CAPTIONS, *CAPTIONS[1:], CAPTIONS[0]])
    own, others = both.select(slice(4)), both.select(slice(4, None))
    batch = api.Batch(torch.arange(4), own, images, mismatched=others)
    for step in range(2):
        with torch.no_grad():
            collected = [method.collect(piece, step) for piece in batch.split(2)]
        for part in collected:
            loss = method.loss(part.experience).value / 2
            assert loss.isfinite()
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    decoder = ("decoder.", "post_quant_conv.")
    for key, value in model.policy.state_dict().items():
        assert torch.equal(value, policy[key]) != (method.updates == "policy"), key
    for key, value in model.tokenizer.state_dict().items():
        trains = method.updates == "decoder" and key.startswith(decoder)
        assert torch.equal(value, codes[key]) != trains, key


def test_random_codes_cannot_be_predicted_unless_they_leak() -> None:
    """Fresh uniform codes at every step: below log V only a model can come that has read what it scores."""
    numbers, found = torch.Generator().manual_seed(0), {}
    alignments: tuple[Fidelity, ...] = ("exact", "as_released")
    for fidelity in alignments:
        model = build(janus_toys.CARD, None, seed=2, fidelity=fidelity)
        model.policy.requires_grad_(True).get_parameter("generation_embeddings.weight").data.mul_(50)
        prompts = model.text_condition(["a cat", "a dog"] * 4)
        optimizer = torch.optim.Adam(model.policy.parameters(), lr=1e-2)
        for _ in range(25):
            tokens = torch.randint(0, 128, (8, 25), generator=numbers)
            logits = model.logits(prompts, tokens[:, :-1])[:, :-1]
            loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, :-1].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found[fidelity] = float(loss.detach()) - math.log(128)
    assert found["exact"] > -0.05
    assert found["as_released"] < -1


RANDOM = ("model.weights=random", "method.perceptual=none", "method.perceptual_weight=0")


def test_recipes_and_settings_reach_the_model(tmp_path: Path) -> None:
    case = Case(REGISTRY, "vapi", "janus-tiny", (*RANDOM, "model.trains=head", "model.fidelity=as_released"))
    model = setup.build_model(case.job(tmp_path).plan, torch.device("cpu"))
    assert isinstance(model, Janus)
    assert (unwrap(model.policy).trains, unwrap(model.policy).fidelity) == (("head",), "as_released")
    recipe = REGISTRY.recipe("vapi-janus-pro-1b-as-released")
    assert recipe.values["model.fidelity"] == "as_released" and recipe.values["method.noise"] == 1.0
    assert REGISTRY.recipe_for("vapi", "janus-pro-1b") == "vapi-janus-pro-1b"


PROMISES = {check.__name__: check for check in (*METHOD_CHECKS, *MORE_CHECKS)}
KEPT = (
    "gradients_reach_only_what_trains", "micro_batches_change_nothing", "two_ranks_give_what_one_gives",
    "only_what_trains_changes",
)  # fmt: skip


@pytest.mark.usefixtures("few_scenes")
@pytest.mark.parametrize("name", KEPT)
def test_a_run_keeps_its_promises(name: str, tmp_path: Path) -> None:
    """Some of the contract of methods, with data, plan and driver as they are."""
    PROMISES[name](Case(REGISTRY, "vapi", "janus-tiny", RANDOM), tmp_path)


@pytest.mark.usefixtures("few_scenes")
@pytest.mark.parametrize("method", ["cca", "gft"])
def test_null_prompts_depend_on_no_split(method: str, tmp_path: Path) -> None:
    """Prompts of other images are padded alike within a share of the step, whatever the shares."""
    case = Case(REGISTRY, method, "janus-tiny", ("model.weights=random", "method.null_share=0.5"))
    PROMISES["two_ranks_give_what_one_gives"](case, tmp_path)


def test_rows_of_prompts_become_null_ones() -> None:
    model = build(janus_toys.CARD, None, seed=2)
    prompts: api.Condition = model.text_condition(CAPTIONS)
    nothing, mask = model.null(prompts), torch.tensor([True, False, False, True])
    mixed = exchange_rows(prompts, mask, nothing)
    assert same_rows(mixed, nothing).tolist() == mask.tolist()
    assert same_rows(mixed, prompts).tolist() == (~mask).tolist() and mixed.texts == ()
    again = exchange_rows(prompts, mask, model.text_condition(CAPTIONS[::-1]))
    assert again.texts == (CAPTIONS[3], *CAPTIONS[1:3], CAPTIONS[0])
