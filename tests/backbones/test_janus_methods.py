"""What methods ask of a tiny Janus."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from alignbench import api
from alignbench.backbones.base import unwrap
from alignbench.backbones.janus.model import Janus, build
from alignbench.backbones.janus.policy import Fidelity
from alignbench.methods.logits import exchange_rows, same_rows
from alignbench.registry.lookup import Registry
from alignbench.testing import METHOD_CHECKS, Case
from alignbench.training import setup
from tests.helpers import janus_toys
from tests.helpers.method_checks import METHOD_CHECKS as MORE_CHECKS

REGISTRY = Registry.default()
CAPTIONS = ["a red circle", "two blue squares", "a green triangle", "nothing"]


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
