"""CCA, its relatives and GFT: losses, gradients and optimum by closed forms in float64, pairs by hand."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from alignbench import api, randomness
from alignbench.errors import UserError
from alignbench.methods.cca import Cca, ContrastivePairs, pair_loss
from alignbench.methods.gft import Gft, mixed
from alignbench.methods.logits import eval_logits
from alignbench.methods.policy_gradient import prior_cross_entropy, token_logprobs
from tests.methods import test_ntp
from tests.methods.test_ar_grpo import backbone
from tests.methods.test_vapi import ToyBackbone, built

R = torch.tensor([1.0, -0.5, 0.0], dtype=torch.float64)
OTHER = torch.tensor([-1.0, 0.5, 0.0], dtype=torch.float64)
ALIKE = torch.tensor([False, False, True])


def data(size: int = 6) -> api.Batch:
    """Digits 0, 1, 2, 0 …, each beside the next one, the last beside its like."""
    numbers = torch.Generator().manual_seed(5)
    images = torch.rand(size, 3, 8, 8, generator=numbers) * 2 - 1
    ids = torch.arange(size) % 3
    mismatched = torch.cat([ids[1:], ids[-1:]])
    index = torch.arange(size) + 100
    return api.Batch(index, api.ClassLabels(ids), images, mismatched=api.ClassLabels(mismatched))


def make(model: Any = None, **changes: Any) -> Cca:
    method: Cca = built("cca", model or backbone(torch.float64), **changes)
    return method


def kept(collected: api.Collected) -> ContrastivePairs:
    assert isinstance(collected.experience, ContrastivePairs)
    return collected.experience


def labels(condition: api.Condition) -> list[int]:
    assert isinstance(condition, api.ClassLabels)
    return condition.ids.tolist()


# --- losses ---------------------------------------------------------------------------------------


def test_losses_and_gradients_are_those_of_the_closed_forms() -> None:
    first, second = R.clone().requires_grad_(), OTHER.clone().requires_grad_()
    loss = pair_loss("cca", first, second, ALIKE, beta=0.02, weight=300.0).mean()
    loss.backward()
    assert loss.item() == pytest.approx(0.46352745476855933, abs=1e-15)
    assert 300 * loss.item() == pytest.approx(139.0582364305678, abs=1e-11)
    assert first.grad is not None and second.grad is not None
    assert first.grad.tolist() == pytest.approx([-1.1000004e-5, -1.1166666e-5, -1.1111111e-5], abs=1e-12)
    assert second.grad.tolist() == pytest.approx([3.300001111e-3, 3.349999861e-3, -1.1111e-5], abs=2e-10)
    zero = torch.zeros_like(R)
    start = pair_loss("cca", zero, zero, ALIKE, beta=0.02, weight=300.0).mean().item()
    assert start == pytest.approx(0.4651787745091189, abs=1e-15)
    dpo = pair_loss("dpo", R, OTHER, ALIKE, beta=0.02, weight=300.0).mean().item()
    assert dpo == pytest.approx(0.6898971758382045, abs=1e-15)
    unlearning = pair_loss("unlearning", R, OTHER, ALIKE, beta=0.02, weight=300.0)
    assert unlearning.tolist() == pytest.approx([(-1 - 300) / 300, (0.5 + 150) / 300, 0], abs=1e-15)
    small = pair_loss("unlearning", R, OTHER, ALIKE, beta=0.02, weight=0.5)
    assert small.tolist() == pytest.approx([-1.5, 0.75, 0], abs=1e-15), "weights below 1 divide nothing"


def test_a_free_log_ratio_ends_at_the_optimum() -> None:
    """Two equal classes, three images: over R(x, c) the expected loss is least at log(p(x|c)/p(x)/λ)/β."""
    given = torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.3, 0.6]], dtype=torch.float64)
    beta, weight = 0.5, 2.0

    def expected(ratio: Tensor) -> Tensor:
        own, other = ratio[:, None].expand(2, 2, 3), ratio[None].expand(2, 2, 3)  # [c, c', x]
        nobody = torch.zeros(2, 2, 3, dtype=torch.bool)
        losses = pair_loss("cca", own, other, nobody, beta=beta, weight=weight)
        return weight * (given[:, None] / 4 * losses).sum()

    best = ((given / given.mean(dim=0)).log() - math.log(weight)) / beta
    assert best[0].tolist() == pytest.approx([-0.308301359655, -1.386294361120, -3.891820298111], abs=1e-11)
    values = [expected(best + move).item() for move in (0.0, 0.1, -0.1)]
    assert values == pytest.approx([1.7715202592949264, 1.772286702963, 1.772280156249], abs=1e-12)
    best.requires_grad_()
    (gradient,) = torch.autograd.grad(expected(best), [best])
    assert gradient.abs().max().item() < 1e-15


# --- pairs ----------------------------------------------------------------------------------------


def test_pairs_are_the_same_tokens_under_two_conditions() -> None:
    model, batch = backbone(torch.float64), data(40)
    collected = make(model, null_share=0.3).collect(batch, step=2)
    pairs = kept(collected)
    drawn = randomness.uniforms(0, "cca-null", 2, batch.index.tolist(), ())
    dropped = [bool(number < 0.3) for number in drawn]
    assert 0 < sum(dropped) < 40 and batch.mismatched is not None
    own, other = labels(batch.condition), labels(batch.mismatched)
    assert labels(pairs.positive.condition) == [10 if d else i for d, i in zip(dropped, own, strict=True)]
    assert labels(pairs.negative.condition) == [10 if d else i for d, i in zip(dropped, other, strict=True)]
    same = [d or a == b for d, a, b in zip(dropped, own, other, strict=True)]
    assert pairs.alike.tolist() == same and same[-1]
    assert torch.equal(pairs.positive.targets, model.tokenizer.encode(batch.images))
    assert torch.equal(pairs.positive.targets, pairs.negative.targets)
    assert (collected.sequences, collected.tokens) == (0, 0)
    with pytest.raises(UserError, match="no conditions of other images"):
        make(model).collect(dataclasses.replace(batch, mismatched=None), step=0)


def test_the_loss_is_of_sums_over_tokens_against_the_frozen_start() -> None:
    model, batch = backbone(torch.float64), data()
    method = make(model, beta=0.3, negative_weight=4.0)
    pairs = kept(method.collect(batch, step=0))
    before = method.loss(pairs)
    assert before.metrics["log_ratio"].item() == before.metrics["negative_log_ratio"].item() == 0.0
    old = [x.detach().clone() for x in ratios(model, pairs)]
    with torch.no_grad():
        for parameter in model.policy.parameters():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
            parameter.add_(0.02 * noise)
    first, second = (new - start for new, start in zip(ratios(model, pairs), old, strict=True))
    loss = method.loss(pairs)
    expected = pair_loss("cca", first, second, pairs.alike, beta=0.3, weight=4.0).mean()
    assert loss.value.item() == pytest.approx(expected.item(), abs=1e-12)
    assert loss.metrics["log_ratio"].item() == pytest.approx(first.mean().item(), abs=1e-12)
    assert first.abs().max() > 0.1


def ratios(model: Any, pairs: ContrastivePairs) -> list[Tensor]:
    """log π of both images of each pair, from one forward each."""
    out = []
    for rows in (pairs.positive, pairs.negative):
        logits = model.policy(rows.condition, rows.context)
        out.append(logits.log_softmax(-1).gather(-1, rows.targets[..., None])[..., 0].sum(-1))
    return out


def test_samples_come_from_the_frozen_start_and_are_never_alike() -> None:
    model, batch = backbone(torch.float64), dataclasses.replace(data(), mismatched=None)
    method = make(model, negatives="samples", null_share=0.5)
    start = [model.reference(), kept(method.collect(batch, step=1))]
    with torch.no_grad():
        model.policy.get_parameter("output.weight").mul_(0.1)
    collected = method.collect(batch, step=1)
    pairs = kept(collected)
    uniforms = torch.from_numpy(randomness.uniforms(0, "cca-token", 1, batch.index.tolist(), (16,)))
    expected = start[0].generate(pairs.positive.condition, uniforms, api.Sampling())
    assert torch.equal(pairs.negative.targets, expected.tokens)
    assert torch.equal(pairs.negative.targets, start[1].negative.targets)
    assert labels(pairs.negative.condition) == labels(pairs.positive.condition)
    assert 10 in labels(pairs.positive.condition) and not pairs.alike.any()
    assert (collected.sequences, collected.tokens) == (6, 96)
    reference = pairs.references[1].sum(-1)
    assert reference.tolist() == pytest.approx(expected.logprobs.double().sum(-1).tolist(), abs=1e-4)


def test_dropout_drops_no_condition() -> None:
    """With 0 in every dropout layer a forward in train mode is that of eval mode, whatever the card drops."""
    model = backbone(torch.float64)
    model.policy.get_submodule("cls_embedding").dropout = 0.9  # type: ignore[assignment]
    plain, dropping = make(model), make(model, dropout=True, reference_dropout=True)
    layers = [part for part in model.policy.modules() if isinstance(part, torch.nn.Dropout)]
    noisy = dropping.loss(dropping.collect(data(), step=0).experience).value.item()
    still = plain.loss(plain.collect(data(), step=0).experience).value.item()
    assert layers and noisy != still
    for part in (*layers, *dropping.reference.policy.modules()):
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    quiet = dropping.loss(dropping.collect(data(), step=0).experience).value.item()
    assert quiet == pytest.approx(still, abs=1e-12)


def test_a_backbone_without_a_null_condition_is_told_of() -> None:
    with pytest.raises(UserError, match="no null condition"):
        make(ToyBackbone())
    with pytest.raises(UserError, match="no null condition"):
        built("gft", ToyBackbone())
    assert make(ToyBackbone(), null_share=0.0).null is None


# --- guidance-free training -----------------------------------------------------------------------


def test_the_mixture_and_its_gradient_are_those_of_the_closed_form() -> None:
    own = torch.tensor([[[2.0, 0.0, -1.0]]], dtype=torch.float64, requires_grad=True)
    null = torch.tensor([[[1.0, 0.5, 0.0]]], dtype=torch.float64)
    loss = prior_cross_entropy(mixed(own, null, 0.25), torch.tensor([[0]])).mean()
    loss.backward()
    assert loss.item() == pytest.approx(0.4946914734265298, abs=1e-15)
    assert own.grad is not None
    expected = [-0.097560248716, 0.063546342599, 0.034013906117]
    assert own.grad.flatten().tolist() == pytest.approx(expected, abs=1e-12)


def test_temperature_1_is_next_token_prediction() -> None:
    model, batch = backbone(), data()
    gft: Gft = built("gft", model, temperature=1.0, null_share=0.0)
    ntp = test_ntp.make(model)  # type: ignore[arg-type]
    found = []
    for method in (gft, ntp):
        loss = method.loss(method.collect(batch, step=0).experience)
        parameters = list(model.policy.parameters())
        found.append([loss.value, *torch.autograd.grad(loss.value, parameters)])
    assert all(map(torch.equal, *found))


def test_the_null_branch_gets_no_gradient_and_dropped_rows_are_scaled() -> None:
    model, batch = backbone(torch.float64), data()
    weight = model.policy.get_parameter("cls_embedding.embedding_table.weight")
    for share, trains in ((0.0, False), (1.0, True)):
        method: Gft = built("gft", model, temperature=0.4, null_share=share)
        experience: Any = method.collect(batch, step=0).experience
        loss = method.loss(experience)
        (gradient,) = torch.autograd.grad(loss.value, [weight])
        assert bool(gradient[10].any()) == trains and bool(gradient[:10].any()) != trains
        context = experience.context
        null = eval_logits(model, method.null(experience.condition), context)
        own = eval_logits(model, experience.condition, context)
        logprobs = token_logprobs(0.4 * own + 0.6 * null, experience.targets[:, None], 1.0)
        assert loss.value.item() == pytest.approx(-logprobs.mean().item(), abs=1e-12)
        if trains:
            plain = prior_cross_entropy(own, experience.targets).mean()
            (full,) = torch.autograd.grad(plain, [weight])
            assert torch.allclose(gradient, 0.4 * full, atol=1e-14)
