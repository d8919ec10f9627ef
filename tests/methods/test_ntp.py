"""Next-token prediction and reward-only: the controls are VA-π with one half taken out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from alignbench import randomness
from alignbench.config.settings import resolve
from alignbench.errors import UserError
from alignbench.methods.ntp import NextToken, annealed
from alignbench.registry.lookup import Registry
from alignbench.testing import Case, Subject
from tests.methods import test_vapi
from tests.methods.test_vapi import ToyBackbone, batch, built, gradients, kept

REGISTRY = Registry.default()


def defaults(method: str) -> dict[str, Any]:
    return {name: option.default for name, option in REGISTRY.method(method).options.items()}


def make(backbone: ToyBackbone, **changes: Any) -> NextToken:
    method: NextToken = built("ntp", backbone, **changes)
    return method


def test_clean_context_is_the_prior_of_vapi() -> None:
    backbone = ToyBackbone()
    method = make(backbone)
    collected = method.collect(batch(), step=0)
    assert (collected.images, collected.sequences, collected.reward_calls) == (3, 0, {})
    loss = method.loss(collected.experience)
    vapi = test_vapi.make(backbone, policy_weight=0.0, prior_weight=1.0)
    prior = vapi.loss(vapi.collect(batch(), step=0).experience)
    assert (loss.value - prior.value).abs().item() < 1e-14
    assert (gradients(method, loss) - gradients(vapi, prior)).abs().max().item() < 1e-14


@pytest.mark.parametrize("kernel", ["exclusive", "inclusive"])
def test_noise_reaches_the_context_and_never_the_targets(kernel: str) -> None:
    backbone, data = ToyBackbone(), batch(400)
    collected = make(backbone, noise=0.5, noise_kernel=kernel).collect(data, step=0)
    experience = kept(collected)
    clean = backbone.tokenizer.encode(data.images)
    assert torch.equal(experience.targets, clean)
    changed = (experience.context != clean[:, :-1]).double().mean().item()
    share = 0.5 if kernel == "exclusive" else 0.5 * (1 - 1 / test_vapi.CODES)
    assert changed == pytest.approx(share, abs=0.04)  # 1,200 tokens, three standard errors
    assert collected.metrics["corrupted"].item() == pytest.approx(changed, abs=1e-6)


def test_the_schedule_is_reAR_s() -> None:
    values = [annealed(progress) for progress in (0, 0.25, 0.5, 0.75, 1)]
    assert values == pytest.approx([1, 2 / 3, 1 / 3, 0, 0], abs=1e-15)


@pytest.mark.parametrize(("step", "highest"), [(0, 1.0), (25, 2 / 3), (50, 1 / 3), (75, 0.0), (99, 0.0)])
def test_annealed_noise_has_a_share_for_each_sequence(step: int, highest: float) -> None:
    """Of 100 steps. A token of a sequence changes with probability ε(1 − 1/K), ε ~ U(0, f)."""
    backbone, data = ToyBackbone(), batch(2000)
    method = make(backbone, noise=1.0, noise_kernel="inclusive", noise_schedule="annealed")
    experience = kept(method.collect(data, step=step))
    changed = (experience.context != experience.targets[:, :-1]).double().mean(dim=1)
    shares = highest * randomness.uniforms(0, "ntp-noise-share", step, data.index.tolist(), (1,))[:, 0]
    assert shares.mean() == pytest.approx(highest / 2, abs=0.02)
    keeps = 1 - 1 / test_vapi.CODES
    assert changed.mean().item() == pytest.approx(highest / 2 * keeps, abs=0.02)
    for part in (shares < highest / 2, shares >= highest / 2):
        assert changed.numpy()[part].sum() == pytest.approx((shares * keeps)[part].sum(), abs=80)
    assert torch.equal(experience.targets, backbone.tokenizer.encode(data.images))


def test_a_run_tells_the_method_its_steps_and_noise_is_asked_for(tmp_path: Path) -> None:
    settings = ("method.noise=0.5", "method.noise_schedule=annealed")
    subject = Subject.build(Case(REGISTRY, "ntp", assignments=settings), tmp_path)
    method: Any = subject.method
    assert method.steps == subject.job.plan.config.train.steps == 4
    with pytest.raises(UserError, match="no noise to take away"):
        make(ToyBackbone(), noise_schedule="annealed")


def test_loss_is_the_cross_entropy_of_the_clean_tokens() -> None:
    backbone = ToyBackbone()
    method = make(backbone, noise=0.7)
    experience = kept(method.collect(batch(), step=0))
    backbone.policy.eval()
    logits = backbone.logits(experience.condition, experience.context)
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), experience.targets.flatten())
    assert method.loss(experience).value.item() == pytest.approx(expected.item(), abs=1e-12)


def test_dropout_is_repeatable_and_off_by_default() -> None:
    values = []
    for dropout in (False, True, True):
        method = make(ToyBackbone(), dropout=dropout)
        values.append(method.loss(method.collect(batch(), step=0).experience).value.item())
    assert values[0] != values[1] == values[2]


def test_reward_only_is_vapi_without_its_prior() -> None:
    assert REGISTRY.method("reward-only").target == REGISTRY.method("vapi").target
    theirs = defaults("vapi")
    changed = {name: value for name, value in defaults("reward-only").items() if value != theirs[name]}
    assert changed == {"prior_weight": 0.0}


@pytest.mark.parametrize("setting", ["prior_weight=0.1", "prior=kl", "policy_weight=0"])
def test_reward_only_cannot_be_turned_into_something_else(setting: str) -> None:
    with pytest.raises(UserError, match=setting.partition("=")[0]):
        resolve(REGISTRY, method="reward-only", model="llamagen-tiny", assignments=[f"method.{setting}"])


def test_controls_see_what_vapi_sees() -> None:
    """Steps, images and schedule of the controls are those of VA-π's recipe, on every model with both."""
    same = ["train.steps", "train.images_per_step", "train.schedule", "train.warmup_steps", "data.limit"]
    for model in ("llamagen-tiny", "llamagen-xxl"):
        recipes = {
            method: REGISTRY.recipe(f"{method}-{model}").values for method in ("vapi", "ntp", "reward-only")
        }
        for key in same:
            assert len({values.get(key) for values in recipes.values()}) == 1, (model, key)
        reward_only = {**recipes["vapi"], **recipes["reward-only"]}
        left_out = {"method.prior_weight", "method.prior", "method.policy_weight", "train.lr"}
        for key, value in recipes["vapi"].items():
            assert key in left_out or reward_only[key] == value, (model, key)
