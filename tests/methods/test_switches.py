"""The switches of the policy-gradient methods against their formulas, written out here in float64."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from alignbench import api, randomness
from alignbench.errors import UserError
from alignbench.methods import groups
from alignbench.methods.policy_gradient import (
    Draws,
    Estimator,
    Ratio,
    clipped_surrogate,
    group_advantages,
    kl_estimate,
    token_logprobs,
)
from alignbench.training import totals
from tests.methods import test_ar_grpo, test_vapi
from tests.methods.test_policy_gradient import OBJECTIVE, OPTIONS, randint, randn


def f64(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# --- ratio ----------------------------------------------------------------------------------------


def literal(kind: str, logits: Tensor, targets: Tensor, draws: Draws, high: float) -> Tensor:
    """−J: VA-π's Eq. 11 for `sequence`, image by image and sample by sample, with the prior of Eq. 9."""
    rows, length, _ = logits.shape
    total = f64(0.0)
    for b in range(rows):
        p = [(logits[b, t] - logits[b, t].max()).exp() for t in range(length)]
        p = [one / one.sum() for one in p]
        for g in range(draws.tokens.shape[1]):
            each = [p[t][draws.tokens[b, g, t]] / draws.logprobs[b, g, t].exp() for t in range(length)]
            product = torch.stack(each).prod()
            a = draws.advantages[b, g]
            if kind == "cispo":
                constants = [min(float(ratio.detach()), 1 + high) for ratio in each]
                terms = [c * a * p[t][draws.tokens[b, g, t]].log() for t, c in enumerate(constants)]
            else:
                ratios = {"token": each, "sequence": [product], "gspo": [product ** (1 / length)]}[kind]
                terms = [torch.min(ratio * a, ratio.clamp(0.8, 1 + high) * a) for ratio in ratios]
            total = total - sum(terms) / len(terms) / draws.tokens.shape[1]
        total = total - 0.1 * sum(p[t][targets[b, t]].log() for t in range(length)) / length
    return total / rows


def drawn(*, scatter: float) -> tuple[Tensor, Tensor, Draws]:
    logits, targets, tokens = randn(3, 6, 11), randint(11, 3, 6), randint(11, 3, 8, 6, seed=1)
    old = token_logprobs(logits + scatter * randn(3, 6, 11, seed=2), tokens, 1.0)
    return logits.requires_grad_(), targets, Draws(tokens, old, group_advantages(randn(3, 8, seed=3)))


@pytest.mark.parametrize(("scatter", "high"), [(0.0, 0.2), (0.05, 0.2), (0.5, 0.2), (0.5, 0.28)])
@pytest.mark.parametrize("kind", ["token", "sequence", "gspo", "cispo"])
def test_loss_and_gradient_are_those_of_the_printed_formula(kind: Ratio, scatter: float, high: float) -> None:
    logits, targets, draws = drawn(scatter=scatter)
    objective = replace(OBJECTIVE, prior_weight=0.1, ratio=kind, clip_range_high=high if high != 0.2 else 0.0)
    loss, expected = objective(logits, targets, draws), literal(kind, logits, targets, draws, high)
    assert loss.value.item() == pytest.approx(expected.item(), abs=1e-13)
    ours, theirs = (torch.autograd.grad(value, logits)[0] for value in (loss.value, expected))
    assert (ours - theirs).abs().max().item() < 1e-13
    assert (loss.metrics["clip_fraction"] > 0) == (scatter > 0.05 or (scatter > 0 and kind == "sequence"))


def test_on_policy_the_printed_policy_gradient_is_t_times_the_programs() -> None:
    """So the printed β weighs T times less against it than the same β in the released program."""
    logits, targets, draws = drawn(scatter=0.0)
    gradient = {}
    for kind in ("token", "sequence", "gspo", "cispo"):
        loss = replace(OBJECTIVE, ratio=kind)(logits, targets, draws)
        (gradient[kind],) = torch.autograd.grad(loss.value, logits)
    assert (gradient["sequence"] - 6 * gradient["token"]).abs().max().item() < 1e-15
    assert max((gradient[x] - gradient["token"]).abs().max().item() for x in ("gspo", "cispo")) < 1e-15
    assert gradient["token"].abs().max().item() > 1e-3


OLD = f64([[0.5, 0.25], [0.4, 0.4], [0.1, 0.5], [0.3, 0.3]]).log()
NEW = f64([[0.55, 0.4], [0.2, 0.4], [0.2, 0.5], [0.3, 0.15]]).log()
REWARDS = f64([[1.0, 0.0, 0.75, 0.25]])


@pytest.mark.parametrize(
    ("kind", "low", "high", "divide", "loss"),
    [
        ("token", 0.2, 0.0, True, -0.09583045216326574),
        ("token", 0.2, 0.0, False, -0.04374999999999999),
        ("token", 0.2, 0.28, True, -0.11225852967696848),
        ("gspo", 0.2, 0.0, True, -0.16428077513702696),
        ("gspo", 3e-4, 4e-4, True, -0.00028749135648972746),
        ("cispo", 0.2, 0.28, True, 0.05610333659434488),
    ],
)
def test_numbers_that_were_worked_out_by_hand(
    kind: Ratio, low: float, high: float, divide: bool, loss: float
) -> None:
    """GRPO, Dr. GRPO, DAPO's higher clip, GSPO and CISPO on four sequences of two tokens."""
    advantages = group_advantages(REWARDS, epsilon=1e-4, divide=divide)[0]
    surrogate = clipped_surrogate(NEW, OLD, advantages, low, math.inf, clip_range_high=high, kind=kind)
    assert surrogate.sequence_loss.mean().item() == pytest.approx(loss, abs=1e-16)


@pytest.mark.parametrize(
    ("kind", "high", "gradient", "outside"),
    [
        ("token", 0.0, [[-0.150590710542, 0], [0, 0.136900645948], [0, -0.068450322974],
                        [0.068450322974, 0]], 0.5),
        ("cispo", 0.28, [[-0.150590710542, -0.175232826813], [0.068450322974, 0.136900645948],
                         [-0.087616413406, -0.068450322974], [0.068450322974, 0.034225161487]], 0.25),
        ("gspo", 0.0, [[0.0, 0.0]] * 4, 1.0),
    ],
)  # fmt: skip
def test_gradients_that_were_worked_out_by_hand(
    kind: Ratio, high: float, gradient: list[list[float]], outside: float
) -> None:
    """GRPO takes the gradient of clipped tokens away, GSPO that of every sequence here, CISPO none."""
    new = NEW.clone().requires_grad_()
    advantages = group_advantages(REWARDS, epsilon=1e-4)[0]
    surrogate = clipped_surrogate(new, OLD, advantages, 0.2, math.inf, clip_range_high=high, kind=kind)
    (ours,) = torch.autograd.grad(surrogate.sequence_loss.mean(), new)
    assert (ours - f64(gradient)).abs().max().item() < 1e-12
    assert surrogate.clip_fraction.item() == outside


def test_ar_grpo_hands_its_switches_on() -> None:
    """Off policy, all of them at once."""
    switches: dict[str, Any] = {
        "ratio": "gspo",
        "clip_range_high": 0.28,
        "kl_estimator": "k2",
        "kl_weight": 0.3,
    }
    method = test_ar_grpo.make(baseline="leave-one-out", **switches)
    experience = test_ar_grpo.kept(method.collect(test_ar_grpo.batch(), 0))
    now = experience.logprobs.double()
    old = now + 0.3 * randn(*now.shape) - 0.1
    loss = method.loss(replace(experience, logprobs=old.float(), reference_logprobs=old.float()))
    ratio, a = (now - old).mean(1).exp(), experience.advantages.double()
    policy = -torch.minimum(ratio * a, ratio.clamp(0.8, 1.28) * a).mean()
    assert loss.value.item() == pytest.approx((policy + 0.15 * (now - old).square().mean()).item(), abs=1e-5)
    assert a.view(3, 4).std(dim=1).tolist() == pytest.approx([4 / 3] * 3, abs=1e-5)


def test_va_pi_hands_its_switches_on() -> None:
    objective = test_vapi.make(ratio="sequence", clip_range_high=0.3, prior="kl", kl_estimator="k1").objective
    assert objective == replace(
        OBJECTIVE, prior_weight=0.1, ratio="sequence", clip_range_high=0.3, kl_estimator="k1"
    )


# --- baseline and standard deviation --------------------------------------------------------------


def test_leave_one_out_compares_with_the_others() -> None:
    rewards = np.random.default_rng(0).normal(size=(3, 5))
    valid = np.ones((3, 5), dtype=bool)
    valid[0, 2] = False
    ours = group_advantages(
        torch.from_numpy(rewards), valid=torch.from_numpy(valid), baseline="leave-one-out", divide=False
    )
    for b, g in itertools.product(range(3), range(5)):
        others = [rewards[b, j] for j in range(5) if j != g and valid[b, j]]
        expected = rewards[b, g] - np.mean(others) if valid[b, g] else 0.0
        assert ours[b, g].item() == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("baseline", ["mean", "leave-one-out"])
def test_the_spread_of_the_whole_step_divides_whatever_its_pieces(baseline: Any) -> None:
    """Two terms with missing scores, each over its own spread; in one piece, or as micro-batches add up."""
    numbers = np.random.default_rng(1)
    values = [torch.from_numpy(3.0 + scale * numbers.normal(size=(6, 4))) for scale in (0.01, 5.0)]
    valid = [torch.from_numpy(numbers.random((6, 4)) < 0.8) for _ in values]
    options = replace(OPTIONS, advantage_std="batch", baseline=baseline)
    pieces = [
        groups.compare([v[rows] for v in values], [m[rows] for m in valid], [2.0, -1.0], options)
        for rows in (slice(0, 1), slice(1, 4), slice(4, 6))
    ]
    unscaled = [piece.unscaled for piece in pieces if piece.unscaled]
    sums = {name: sum(one.sums[name] for one in unscaled) for name in unscaled[0].sums}
    ours = torch.cat([one.divided(sums) for one in unscaled])
    expected = torch.zeros(6, 4, dtype=torch.float64)
    for weight, part, mask in zip((2.0, -1.0), values, valid, strict=True):
        centred = group_advantages(part, valid=mask, baseline=baseline, divide=False)
        expected += weight * centred / (np.std(part[mask].numpy(), ddof=1) + 1e-8)
    expected[~(valid[0] & valid[1])] = 0.0
    assert (ours - expected).abs().max().item() < 1e-9
    assert len(unscaled) == 3 and ours.abs().max().item() > 1.0


def finished(method: Any, data: api.Batch) -> Any:
    collected = [method.collect(piece, 0) for piece in data.split(2)]
    return totals.complete(method, collected, dict)


def test_va_pi_divides_by_the_spread_of_the_step() -> None:
    data, numbers = test_vapi.batch(5), []
    plain = test_vapi.draws_of(test_vapi.make(advantage_std="none").collect(data, 0))
    method = test_vapi.make(advantage_std="batch")
    for part in finished(method, data):
        numbers.append(part.experience.draws.advantages)
        assert method.loss(part.experience).value.isfinite()
    # Without division an advantage is the reward minus its group's mean.
    pixel, perceptual = (
        method.reconstruction.measure(method.backbone, plain.tokens, data.images)[part]
        for part in ("pixel", "perceptual")
    )
    rewards = -(pixel + perceptual)
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    assert (plain.advantages - centred).abs().max().item() < 1e-12
    assert (torch.cat(numbers) - centred / (rewards.std() + 1e-8)).abs().max().item() < 1e-9
    with pytest.raises(AssertionError):
        method.loss(method.collect(data, 0).experience)


# --- divergence -----------------------------------------------------------------------------------

P, Q = f64([0.5, 0.3, 0.2]), f64([0.2, 0.5, 0.3])


@pytest.mark.parametrize(
    ("estimator", "mean", "gradient"),
    [
        ("k1", float((P * (P / Q).log()).sum()), [0.0, 0.0, 0.0]),
        ("k2", 0.2654787944, [0.346243037344, -0.220389084285, -0.125853953059]),
        ("k3", float((P * (P / Q).log()).sum()), [0.3, -0.2, -0.1]),
    ],
)
def test_estimators_and_where_their_gradients_lead(
    estimator: Estimator, mean: float, gradient: list[float]
) -> None:
    """Mean over draws from p, and the mean gradient in the logits: of KL(p‖q) for k2, p − q for k3."""
    logits = P.log().requires_grad_()
    estimates = kl_estimate(logits.log_softmax(0), Q.log(), estimator)
    value = (P * estimates).sum()
    assert value.item() == pytest.approx(mean, abs=1e-10)
    (ours,) = torch.autograd.grad(value, logits)
    assert ours.tolist() == pytest.approx(gradient, abs=1e-11)
    ratio = Q / P
    forms = {"k1": -ratio.log(), "k2": ratio.log() ** 2 / 2, "k3": ratio - 1 - ratio.log()}
    assert (estimates.detach() - forms[estimator]).abs().max().item() < 1e-15
    assert estimator == "k1" or (estimates >= 0).all()


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_divergence_in_the_loss_is_the_mean_over_tokens(estimator: Estimator) -> None:
    logits, targets, draws = drawn(scatter=0.3)
    reference = token_logprobs(randn(3, 6, 11, seed=5), draws.tokens, 1.0)
    objective = replace(OBJECTIVE, policy_weight=0.0, prior_weight=0.7, kl_estimator=estimator)
    loss = objective(logits, targets, replace(draws, reference_logprobs=reference))
    table, each = logits.log_softmax(-1), []
    for b, g, t in itertools.product(range(3), range(8), range(6)):
        d = reference[b, g, t] - table[b, t, draws.tokens[b, g, t]]
        each.append({"k1": -d, "k2": d * d / 2, "k3": d.exp() - 1 - d}[estimator])
    expected = 0.7 * torch.stack(each).mean()
    assert loss.value.item() == pytest.approx(expected.item(), abs=1e-13)
    ours, theirs = (torch.autograd.grad(value, logits)[0] for value in (loss.value, expected))
    assert (ours - theirs).abs().max().item() < 1e-13


@pytest.mark.parametrize("kind", ["token", "sequence", "gspo"])
@pytest.mark.parametrize("baseline", ["mean", "leave-one-out"])
def test_with_k1_in_the_reward_the_mean_gradient_is_that_of_reward_minus_divergence(
    kind: Ratio, baseline: Any
) -> None:
    """Over all 81 pairs of the 9 sequences of two tokens: of E[r] − β KL(π ‖ reference), undivided.

    A leave-one-out baseline leaves it as it is, the group mean takes (G−1)/G of it; 1/T unless `sequence`.
    """
    beta, logits = 0.3, randn(1, 2, 3).requires_grad_()
    sequences = torch.tensor(list(itertools.product(range(3), repeat=2)))
    reward = randn(9, seed=1)
    reference = token_logprobs(randn(1, 2, 3, seed=2), sequences[None], 1.0)[0]
    logprobs = token_logprobs(logits, sequences[None], 1.0)[0]
    probability = logprobs.sum(-1).exp()
    goal = (probability * (reward - beta * (logprobs - reference).sum(-1))).sum()
    (expected,) = torch.autograd.grad(goal, logits, retain_graph=True)

    options = replace(OPTIONS, baseline=baseline, advantage_std="none", kl_estimator="k1", kl_in="reward")
    pairs = torch.tensor(list(itertools.product(range(9), repeat=2)))
    old = logprobs.detach()
    scores = (reward - beta * options.penalty(old, reference))[pairs]
    advantages = groups.compare([scores], [torch.ones_like(scores, dtype=torch.bool)], [1.0], options)[0]
    loss = f64(0.0)
    for pair, weight, advantage in zip(pairs, probability.detach()[pairs].prod(-1), advantages, strict=True):
        draws = Draws(sequences[pair][None], old[pair][None], advantage[None])
        loss = loss + weight * replace(OBJECTIVE, ratio=kind)(logits, sequences[:1], draws).value
    (ours,) = torch.autograd.grad(loss, logits)
    factor = (1.0 if baseline == "leave-one-out" else 0.5) / (1 if kind == "sequence" else 2)
    assert (ours + factor * expected).abs().max().item() < 1e-14
    assert expected.abs().max().item() > 0.05


def test_divergence_in_the_reward_of_va_pi_and_ar_grpo() -> None:
    """Summed over the tokens of a sequence, against the log-probabilities that two models give."""
    backbone, data = test_vapi.ToyBackbone(), test_vapi.batch()
    changes: dict[str, Any] = {"prior": "kl", "kl_in": "reward", "kl_estimator": "k1", "prior_weight": 0.4}
    method = test_vapi.make(backbone, advantage_std="none", **changes)
    assert method.reference is not None
    with torch.no_grad():
        method.reference.policy.get_parameter("head.weight").mul_(1.3)
    collected = method.collect(data, 0)
    draws = test_vapi.draws_of(collected)
    tables = [one.logits(data.condition, test_vapi.kept(collected).context).log_softmax(-1)
              for one in (backbone, method.reference) if one.policy.eval()]  # fmt: skip
    ours, reference = (
        table[:, None].expand(-1, 8, -1, -1).gather(-1, draws.tokens[..., None])[..., 0] for table in tables
    )
    measured = method.reconstruction.measure(method.backbone, draws.tokens, data.images)
    rewards = -(measured["pixel"] + measured["perceptual"]) - 0.4 * (ours - reference).sum(-1)
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    assert (draws.advantages - centred).abs().max().item() < 1e-12
    assert collected.metrics["kl"].item() == pytest.approx((ours - reference).mean().item(), abs=1e-12)
    loss = method.loss(collected.experience)
    policy = method.objective.policy_weight * loss.metrics["policy_loss"]
    assert loss.value.item() == pytest.approx(policy.item(), abs=1e-15), "nothing else is in the loss"

    for preset in ("faithful", "fixed"):
        model = test_ar_grpo.backbone(torch.float64)
        grpo = test_ar_grpo.make(model, preset=preset, kl_in="reward", kl_estimator="k1", kl_weight=0.4,
                                 advantage_std="none")  # fmt: skip
        assert grpo.reference is not None
        with torch.no_grad():
            next(grpo.reference.policy.parameters()).mul_(1.3)
        experience = test_ar_grpo.kept(grpo.collect(test_ar_grpo.batch(2), 0))
        assert experience.reference_logprobs is None and "kl" not in grpo.loss(experience).metrics
        tables = [one.logits(experience.condition, experience.tokens[:, :-1]).log_softmax(-1)
                  for one in (model, grpo.reference)]  # fmt: skip
        first, second = (test_ar_grpo.of_tokens(table, experience.tokens) for table in tables)
        images = (model.tokenizer.decode(experience.tokens, (4, 4)) + 1) / 2
        values = images.mean(dim=(1, 2, 3)).float() - 0.4 * (first - second).sum(-1)
        values = values.view(2, 4)
        expected = (values - values.mean(1, keepdim=True)).flatten()
        assert (experience.advantages - expected).abs().max().item() < 1e-6
        assert expected.abs().max().item() > 1e-3


@pytest.mark.parametrize("changes", [{"kl_in": "reward"}, {"kl_estimator": "k1"}])
def test_a_divergence_that_is_not_used_has_no_form(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="change nothing"):
        test_vapi.make(**changes)
    with pytest.raises(UserError, match="change nothing"):
        test_ar_grpo.make(kl_weight=0.0, **changes)


# --- groups drawn again ---------------------------------------------------------------------------

PEAKED: dict[str, Any] = {"temperature": 0.04, "group_size": 2}


def test_flat_groups_are_drawn_again_from_numbers_of_their_own() -> None:
    """Attempt k of an image has numbers of its own; other groups keep theirs; every draw is counted."""
    data, backbone = test_vapi.batch(12), test_vapi.ToyBackbone()
    plain = test_vapi.make(backbone, **PEAKED).collect(data, 0)
    most, again, tokens = 2, 0, test_vapi.draws_of(plain).tokens.clone()
    backbone.policy.eval()
    table = (backbone.logits(data.condition, test_vapi.kept(plain).context) / 0.04).softmax(-1)
    for image in range(12):
        for attempt in range(1, most + 1):
            if not torch.equal(tokens[image, 0], tokens[image, 1]):
                break
            purpose = f"vapi-sample-redraw-{attempt}"
            uniforms = torch.from_numpy(randomness.uniforms(0, purpose, 0, [100 + image], (2, 4)))[0]
            tokens[image] = randomness.inverse_cdf(table[image], uniforms.T.contiguous()).T
            again += 1
    method = test_vapi.make(backbone, redraws=most, **PEAKED)
    collected = method.collect(data, 0)
    draws = test_vapi.draws_of(collected)
    assert torch.equal(draws.tokens, tokens) and 0 < again < 2 * 12
    assert collected.sequences == 2 * (12 + again)
    assert collected.reward_calls == {"pixel-mse": 2 * (12 + again), "pixel-l1": 2 * (12 + again)}
    assert collected.metrics["redrawn_groups"].item() == pytest.approx(again / 12)
    assert collected.metrics["flat_groups"] < plain.metrics["flat_groups"]
    parts = [method.collect(piece, 0) for piece in data.split(1)]
    alone = torch.cat([test_vapi.draws_of(part).advantages for part in parts])
    assert (alone - draws.advantages).abs().max().item() < 1e-12
    assert sum(part.sequences for part in parts) == collected.sequences


def test_generated_groups_are_drawn_again_and_hopeless_ones_at_most_so_often() -> None:
    """The second image's scores are equal until its second redraw, the third's always; a failed one waits."""
    seen: dict[int, int] = {}

    def score(request: api.ScoreRequest) -> Tensor:
        values = torch.full((len(request.images),), 0.5)
        for group in request.group.unique().tolist():
            rows, times = request.group == group, seen.get(group, 0)
            seen[group] = times + 1
            if group == 100 or (group == 101 and times == 2):
                values[rows] = torch.arange(4.0)
            if group == 103:
                values[rows] = torch.tensor([0.5, torch.nan, torch.nan, torch.nan])
        return values

    method = test_ar_grpo.make(redraws=3, reward=lambda _: test_ar_grpo.Stub(score))
    collected = method.collect(test_ar_grpo.batch(4), 0)
    assert seen == {100: 1, 101: 3, 102: 4, 103: 1}
    assert collected.sequences == 4 * 9 and collected.tokens == 4 * 9 * 16
    assert collected.reward_calls == {"bright": 36} and collected.reward_failures == {"bright": 3}
    assert collected.metrics["redrawn_groups"].item() == pytest.approx(5 / 4)
    assert collected.metrics["rollout_gap"].item() < 1e-5, "kept log-probabilities are of the kept tokens"
    advantages = test_ar_grpo.kept(collected).advantages.view(4, 4)
    assert (advantages != 0).any(1).tolist() == [True, True, False, False]
