"""Weights of tokens: numbers that were worked out by hand, loops, and what they do to AR-GRPO's loss."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from alignbench import api
from alignbench.backbones.base import unwrap
from alignbench.errors import UserError
from alignbench.methods.policy_gradient import clipped_surrogate, group_advantages, kl_estimate
from alignbench.methods.tokens.factors import Contrast, Critical, Divergence, Factor, Opposite
from alignbench.methods.tokens.signals import (
    Signals,
    Weights,
    entropy_bonus,
    gradient_magnitude,
    prefix_mean,
    smooth,
)
from alignbench.methods.tokens.weights import TokenWeights, WeightSum, parse
from tests.methods.test_ar_grpo import (
    Stub,
    backbone,
    batch,
    brightness,
    guided_table,
    kept,
    make,
    of_tokens,
    output_gradient,
)  # fmt: skip
from tests.methods.test_policy_gradient import randn
from tests.methods.test_switches import NEW, OLD, REWARDS, f64

GCPO = "critical(0.1,0.1,0.1)*divergence(0.5)"
DELTA = f64([[0.2, -0.9], [0.0, 0.0], [0.1, 0.1], [-0.2, 0.6]])
CHOSEN = f64([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.0]])


@dataclass(frozen=True)
class Given(Factor):
    """A selection that is given."""

    weights: Tensor
    selects = True

    def policy(self, signals: Signals) -> Tensor:
        return self.weights


def signals_of(logprobs: Tensor, advantages: Tensor | None = None, **more: Any) -> Signals:
    """Of one group: [G, T] and [G]."""
    given = torch.zeros(logprobs.shape[0]).double() if advantages is None else advantages
    grid = more.pop("grid", (1, logprobs.shape[1]))
    found = {name: part[None] for name, part in more.items()}
    return Signals(grid, given[None], torch.ones(1, len(given)).bool(), logprobs[None], **found)


def flat(weights: Weights) -> Weights:
    return Weights(*(part.flatten(0, 1) for part in weights))


# --- GCPO -----------------------------------------------------------------------------------------


def test_structure_is_where_the_smoothed_entropy_changes_most() -> None:
    field = f64([[1, 2, 3, 4, 5], [2, 1, 0, 1, 2], [5, 4, 3, 2, 1], [0, 3, 0, 3, 0]])
    smoothed = smooth(field)
    assert smoothed[1].tolist() == pytest.approx([5 / 3, 1.8, 2, 2.6, 3], abs=1e-14)
    for y, x in itertools.product(range(4), range(5)):
        around = [(y, x), (y, x - 1), (y - 1, x - 1), (y - 1, x), (y - 1, x + 1)]
        there = [float(field[a, b]) for a, b in around if a >= 0 and 0 <= b < 5]
        assert smoothed[y, x].item() == pytest.approx(sum(there) / len(there), abs=1e-14)
    steps = gradient_magnitude(smoothed).flatten()
    assert steps[[4, 9]].tolist() == pytest.approx([1.802775637732, 1.552417469626], abs=1e-12)
    signals = signals_of(torch.zeros(1, 20).double(), grid=(4, 5), entropy=field.flatten()[None])
    assert Critical(0.0, 0.1, 0.0)(signals).selected.nonzero()[:, 2].tolist() == [4, 9]
    assert Critical(0.1, 0.1, 0.0)(signals).selected.nonzero()[:, 2].tolist() == [0, 1, 4, 9]
    # Nothing is looked for in the first or in the last tenth.
    edges = signals_of(torch.zeros(1, 20).double(), grid=(4, 5), entropy=f64([[9.0, *[0.0] * 18, 9.0]]))
    chosen = Critical(0.0, 0.8, 0.0)(edges).selected.nonzero()[:, 2].tolist()
    assert chosen == list(range(2, 18))


def test_diversity_is_where_the_codes_of_a_group_differ_and_nothing_is_chosen_yet() -> None:
    vectors, entropy = randn(4, 30, 3), randn(4, 30, seed=1)
    signals = signals_of(torch.zeros(4, 30).double(), grid=(5, 6), vectors=vectors, entropy=entropy)
    two, three = Critical(0.1, 0.1, 0.0)(signals).selected[0], Critical(0.1, 0.1, 0.1)(signals).selected[0]
    curve = []
    for t in range(30):
        pairs = itertools.permutations(range(4), 2)
        cosine = [float(vectors[i, t] @ vectors[j, t] / vectors[i, t].norm() / vectors[j, t].norm())
                  for i, j in pairs]  # fmt: skip
        curve.append(sum(cosine) / 12)
    for i in range(4):
        free = [t for t in range(30) if not two[i, t]]
        lowest = sorted(sorted(free, key=lambda t: curve[t])[:3])
        assert (three[i] - two[i]).nonzero().flatten().tolist() == lowest
    assert three.sum(dim=1).tolist() == [9.0] * 4
    assert len({tuple(row.tolist()) for row in three - two}) > 1, "sets are those of a sample"


def test_shares_of_the_published_sizes() -> None:
    assert [Critical().chosen(tokens) for tokens in (576, 256, 16)] == [171, 75, 3]


def test_dynamic_weights_with_and_without_exp() -> None:
    delta = f64([[0.2, -0.9, 0.1, 0.7]])
    signals = signals_of(delta, reference=torch.zeros(1, 4).double())
    ours = Divergence(0.5)(signals).policy[0, 0]
    expected = [1.221402758160, 0.913966708936, 0.977701445316, 1.145456401662]
    assert ours.tolist() == pytest.approx(expected, abs=1e-12)
    without = prefix_mean(delta.clamp(-0.5, 0.5))[0].tolist()
    assert without == pytest.approx([0.2, -0.15, -0.2 / 3, 0.075], abs=1e-15)
    start = replace(signals, logprobs=signals.logprobs * 0)
    assert Divergence(0.5)(start).policy.eq(1).all(), "as printed without exp they would all be 0"


@pytest.mark.parametrize(
    ("gradient", "expected"),
    [("attached", [7 / 6, 1 / 6, 2 / 3, 0.0]), ("detached", [0.5, 0.0, 0.5, 0.0])],
)
def test_the_released_weight_trains_tokens_that_are_not_selected(
    gradient: str, expected: list[float]
) -> None:
    new = torch.zeros(1, 4).double().requires_grad_()
    old = new.detach()
    signals = replace(signals_of(old, reference=old), current=new[None])
    weigh = TokenWeights((Given(f64([[[1, 0, 1, 0]]])), Divergence(0.5, gradient)))
    loss = clipped_surrogate(new, old, f64([1]), 0.2, math.inf, token_weights=flat(weigh(signals)).policy)
    assert loss.sequence_loss.item() == -1.0
    (found,) = torch.autograd.grad(-loss.sequence_loss.mean(), new)
    assert found[0].tolist() == pytest.approx(expected, abs=1e-15)


def test_gcpos_loss() -> None:
    advantages = group_advantages(REWARDS, epsilon=1e-4)[0]
    assert advantages.tolist() == pytest.approx(
        [1.09520516758, -1.09520516758, 0.54760258379, -0.54760258379], abs=1e-11
    )
    old = randn(4, 2)
    weights = flat(
        TokenWeights((Given(CHOSEN[None]), Divergence(0.5)))(signals_of(old, reference=old - DELTA))
    )
    policy = clipped_surrogate(old, old, advantages, 0.2, math.inf, token_weights=weights.policy)
    divergence = kl_estimate(old, old - DELTA) * weights.divergence
    loss = policy.sequence_loss.mean() + 0.01 * divergence.mean()
    assert loss.item() == pytest.approx(0.1392636115130834, abs=1e-15)


# --- normalisers ----------------------------------------------------------------------------------

W = f64([[1, 0], [1, 1], [0, 0], [0, 1]])


def weighted_loss(weight_sum: WeightSum, factors: tuple[Factor, ...], groups: int = 1) -> float:
    """The clipped losses of four sequences, in so many groups."""
    advantages = group_advantages(REWARDS, epsilon=1e-4)[0]
    signals = signals_of(OLD, advantages)
    parts = {
        name: getattr(signals, name).view(groups, -1, *getattr(signals, name).shape[2:])
        for name in ("advantages", "valid", "logprobs")
    }
    weights = TokenWeights(factors, weight_sum)(replace(signals, **parts))
    surrogate = clipped_surrogate(NEW, OLD, advantages, 0.2, math.inf, token_weights=flat(weights).policy)
    return surrogate.sequence_loss.mean().item()


def test_three_normalisers_are_three_numbers() -> None:
    given = (Given(W[None]),)
    selected, everything = 0.3011814210845495, 0.15059071054227474
    assert weighted_loss("selected", given) == pytest.approx(selected, abs=1e-15)
    assert weighted_loss("weights", given) == pytest.approx(selected, abs=1e-15)
    assert weighted_loss("tokens", given) == pytest.approx(everything, abs=1e-15)
    # Each sequence a group of its own: the mean of their means, 0 for the one without any weight.
    alone = weighted_loss("selected", (Given(W[:, None]),), groups=4)
    assert alone == pytest.approx(0.05476025837900897, abs=1e-15)
    # A factor that selects nothing away counts in the sum of the weights alone.
    halves = [weighted_loss(kind, (*given, Half())) for kind in ("selected", "weights", "tokens")]
    assert halves == pytest.approx([selected / 2, selected, everything / 2], abs=1e-15)


class Half(Factor):
    def policy(self, signals: Signals) -> Tensor:
        return torch.full_like(signals.logprobs, 0.5)


# --- contrast, STAGE, entropy ---------------------------------------------------------------------


def test_ranks_of_a_sequence() -> None:
    signals = signals_of(torch.zeros(1, 4).double(), null_divergence=f64([[5, 0.1, 0.4, 0.2]]))
    assert (3 * Contrast()(signals).policy).tolist() == [[pytest.approx([3, 0, 2, 1], abs=1e-15)]]


VECTORS = f64(
    [
        [(1, 0), (0, 1), (3, 4)],
        [(1, 0), (0, -1), (4, 3)],
        [(0, 1), (0, 1), (-3, -4)],
        [(1, 1), (1, 0), (3, 4)],
    ]
)
A = [1.305309749354, 0.261061949871, -0.783185849612, -0.783185849612]
U = [
    [0.323223304703, 0.25, 0.5],
    [0.323223304703, 0.75, 0.5],
    [0.5, 0.5, 0.99],
    [0.146446609407, 0.5, 0.01],
]


def test_stages_weights_and_policy_term() -> None:
    advantages = group_advantages(f64([[1, 0.5, 0, 0]]), epsilon=1e-4)[0]
    assert advantages.tolist() == pytest.approx(A, abs=1e-11)
    signals = signals_of(torch.zeros(4, 3).double(), advantages, vectors=VECTORS)
    weights = Opposite()(signals)
    assert (weights.policy[0] - f64(U)).abs().max().item() < 1e-12
    expected = torch.ones(4, 3).double()
    expected[1, 1], expected[2, 2] = 0.75, 0.51
    assert (weights.divergence[0] - expected).abs().max().item() < 1e-12
    scaled = TokenWeights((Opposite(),), "weights")(signals)
    zero = torch.zeros(4, 3).double()
    loss = clipped_surrogate(zero, zero, advantages, 0.2, math.inf, token_weights=scaled.policy[0])
    total = weights.policy.sum().item()
    # The released program adds 1e-6 to the sum of the weights.
    term = -loss.sequence_loss.mean().item() * total / (total + 1e-6)
    assert term == pytest.approx(-0.04932309981613798, abs=1e-15)
    assert torch.equal(scaled.divergence, weights.divergence), "the divergence is a mean over all tokens"


def test_samples_on_no_side_are_opposite_to_all_and_those_without_score_to_nobody() -> None:
    signals = signals_of(torch.zeros(3, 1).double(), f64([1, 0, 1]), vectors=f64([[[1, 0]]] * 3))
    similar = 1 - 2 * Opposite()(signals).policy[0, :, 0]
    assert similar.tolist() == pytest.approx([1, 2 / 3, 1]), "of the second itself is a third, of cosine 0"
    unscored = replace(signals, valid=torch.tensor([[True, False, True]]))
    assert (1 - 2 * Opposite()(unscored).policy[0, :, 0]).tolist() == pytest.approx([0, 1, 0])


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [([1, 0, 1, 1], [1.04, 0, 1.04, 0.92]), ([1, 1, 1, 1], [0.98, 1.18, 0.98, 0.86])],
)
def test_the_best_are_rewarded_for_entropy_near_the_starts(
    rewards: list[float], expected: list[float]
) -> None:
    bonus = entropy_bonus(f64([rewards]), f64([[5, 6, 7, 8]]), torch.full((1, 4), 6.0).double())
    changed = f64([rewards]) + 0.4 * bonus
    assert changed[0].tolist() == pytest.approx(expected, abs=1e-15)
    if rewards == [1, 1, 1, 1]:  # a flat group is ranked by its entropies alone
        found = group_advantages(changed, epsilon=1e-4)[0].tolist()
        assert found == pytest.approx(
            [-0.150642121517, 1.355779093656, -0.150642121517, -1.054494850622], abs=1e-11
        )
    nothing = entropy_bonus(torch.full((1, 2), math.nan), torch.zeros(1, 2), torch.zeros(1, 2))
    assert nothing.tolist() == [[0.0, 0.0]]


# --- in AR-GRPO -----------------------------------------------------------------------------------


@pytest.mark.parametrize("weight_sum", ["selected", "weights", "tokens"])
def test_weights_of_one_change_no_bit(weight_sum: str) -> None:
    results = []
    for changes in ({}, {"token_weights": "prefix(1)", "weight_sum": weight_sum}):
        model = backbone()
        method = make(model, **changes)
        with torch.no_grad():
            unwrap(model.policy).output.weight.mul_(1.1)
        loss = method.loss(method.collect(batch(), 0).experience)
        results.append((loss.value, output_gradient(model, loss)))
        assert loss.metrics["kl"].item() > 1e-3
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    assert results[0][1].abs().max().item() > 1e-4


@pytest.mark.parametrize(
    "changes", [{}, {"cfg_scale": 2.0}, {"cfg_scale": 2.0, "preset": "faithful"}], ids=str
)
def test_signals_are_those_of_two_separate_passes(changes: dict[str, Any]) -> None:
    model = backbone()
    spec = "critical(0.1,0.1,0.1)*contrast*entropy(0.5)*divergence"
    experience = kept(make(model, token_weights=spec, **changes).collect(batch(), 0))
    signals, tokens = experience.signals, experience.tokens
    assert signals is not None and signals.entropy is not None and signals.reference is not None
    assert signals.vectors is not None and signals.null_divergence is not None
    sampled = guided_table(model, experience, api.Sampling(cfg_scale=changes.get("cfg_scale", 1.0)))
    entropy = -(sampled.exp() * sampled).sum(-1)
    assert (signals.entropy.flatten(0, 1) - entropy).abs().max().item() < 1e-5
    plain = guided_table(model, experience, api.Sampling())
    without = guided_table(
        model, replace(experience, condition=model.null(experience.condition)), api.Sampling()
    )
    divergence = (plain.exp() * (plain - without)).sum(-1)
    assert (signals.null_divergence.flatten(0, 1) - divergence).abs().max().item() < 1e-5
    assert divergence.max().item() > 0.1
    assert torch.equal(signals.vectors.flatten(0, 1), model.tokenizer.codebook()[tokens])
    assert torch.equal(signals.reference.flatten(), experience.logprobs.flatten())


def test_nothing_is_measured_that_no_factor_asks_for() -> None:
    fields = ("reference", "entropy", "vectors", "null_divergence")
    asked = {
        "prefix": [], "entropy": ["entropy"], "divergence": ["reference"], "opposite": ["vectors"],
        "critical(0.1,0,0)": [], "critical(0.1,0.1,0)": ["entropy"], "critical(0,0,0.1)": ["vectors"],
    }  # fmt: skip
    for spec, names in asked.items():
        signals = kept(make(token_weights=spec).collect(batch(1), 0)).signals
        assert [name for name in fields if getattr(signals, name) is not None] == names
    assert kept(make().collect(batch(1), 0)).signals is None


@pytest.mark.parametrize("spec", [GCPO, "opposite", "opposite*entropy(0.5)"])
@pytest.mark.parametrize("weight_sum", ["selected", "weights", "tokens"])
def test_the_loss_is_the_sum_over_groups_written_out(spec: str, weight_sum: str) -> None:
    """Off policy, with a divergence; one of twelve samples has no score."""
    model = backbone(torch.float64)
    scores = Stub(lambda request: brightness(request).index_fill(0, torch.tensor([5]), math.nan))
    method = make(model, token_weights=spec, weight_sum=weight_sum, kl_weight=0.3, reward=lambda _: scores)
    with torch.no_grad():
        unwrap(model.policy).output.weight.mul_(1.2)
    experience = kept(method.collect(batch(), 0))
    assert experience.signals is not None and method.reference is not None and method.weights is not None
    with torch.no_grad():
        unwrap(model.policy).output.weight.mul_(1.1)
    twin: Any = method.reference
    table, reference = (guided_table(one, experience, api.Sampling()) for one in (model, twin))
    new, start = (of_tokens(one, experience.tokens).view(3, 4, 16) for one in (table, reference))
    ratio = (new - experience.logprobs.view(3, 4, 16)).exp()
    a = experience.advantages.view(3, 4, 1)
    token = -torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a)
    apart = start - new
    divergence = (apart.exp() - apart - 1).masked_fill(~experience.valid.view(3, 4, 1), 0.0)
    parts = [factor(experience.signals) for factor in method.weights.factors]
    total = f64(0.0)
    for b in range(3):
        u, v, z = (math.prod(getattr(part, name)[b] for part in parts) for name in Weights._fields)
        over = {"selected": z.sum(), "weights": u.sum(), "tokens": 64}[weight_sum]
        total = total + (u * token[b]).sum() / over
        total = total + 0.3 * (v * divergence[b]).sum() / (64 if weight_sum == "tokens" else z.sum())
    loss = method.loss(experience)
    assert loss.value.item() == pytest.approx((total / 3).item(), abs=1e-9)
    assert abs(loss.value.item()) > 1e-3
    share = {GCPO: 3 / 16, "opposite": 1.0}.get(spec, 0.5)
    assert loss.metrics["selected_tokens"].item() == pytest.approx(share)


def test_attached_weights_have_the_same_loss_and_another_gradient() -> None:
    gradients = []
    for gradient in ("detached", "attached"):
        model = backbone(torch.float64)
        method = make(model, token_weights=f"critical*divergence(gradient={gradient})")
        loss = method.loss(method.collect(batch(), 0).experience)
        gradients.append(output_gradient(model, loss))
        assert loss.value.item() == pytest.approx(0.0, abs=1e-7), "all weights are 1 and advantages sum to 0"
    assert (gradients[0] - gradients[1]).abs().max().item() > 1e-4


def test_opposites_are_found_among_the_final_advantages() -> None:
    """Those divided by the spread of the whole step."""
    method = make(
        token_weights="opposite", weight_sum="weights", advantage_std="batch", rewards="bright, top@-1"
    )
    experience = kept(method.collect(batch(), 0))
    completed = method.complete(experience, method.sums(experience))
    assert isinstance(completed, type(experience)) and completed.signals and method.weights
    signals = replace(completed.signals, advantages=completed.advantages.view(3, 4))
    expected = method.weights(signals).policy.flatten(0, 1)
    ours = method.weights.now(completed.signals, completed.advantages, completed.logprobs).policy
    assert torch.equal(ours, expected)
    loss = clipped_surrogate(
        completed.logprobs, completed.logprobs, completed.advantages, 0.2, math.inf, token_weights=expected
    )
    assert method.loss(completed).value.item() == pytest.approx(loss.sequence_loss.mean().item(), abs=1e-5)


def test_the_entropy_reward_is_one_more_term() -> None:
    scores = [1.0, 0.0, 1.0, 1.0]
    stub = Stub(lambda request: torch.tensor(scores))
    model = backbone()
    method = make(model, preset="faithful", entropy_reward=0.4, reward=lambda _: stub)
    with torch.no_grad():
        unwrap(model.policy).output.weight.mul_(1.5)
    collected = method.collect(batch(1), 0)
    twin: Any = method.reference
    tables = [guided_table(one, kept(collected), api.Sampling()) for one in (model, twin)]
    ours, start = (-(table.exp() * table).sum(-1).mean(-1).double() for table in tables)
    b = [1 / (1 + (h - g) ** 2) for h, g in zip(start.tolist(), ours.tolist(), strict=True)]
    mean = (b[0] + b[2] + b[3]) / 3
    changed = [s + 0.4 * (x - mean) * s for s, x in zip(scores, b, strict=True)]
    expected = group_advantages(f64([changed]), epsilon=1e-4)[0].tolist()
    assert kept(collected).advantages.tolist() == pytest.approx(expected, abs=1e-5)
    assert collected.metrics["reference_entropy"].item() == pytest.approx(start.mean().item(), abs=1e-5)
    assert collected.metrics["reward"].item() == 0.75, "the log has the rewards alone"


# --- specifications -------------------------------------------------------------------------------


def test_factors_as_they_are_written() -> None:
    found = parse(" critical(0.2, diversity=0.05) * divergence( 0.4,gradient = attached )*contrast ")
    assert found == (Critical(0.2, 0.1, 0.05), Divergence(0.4, "attached"), Contrast())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token_weights": "critcal"}, "there is no factor 'critcal'. Did you mean critical?"),
        ({"token_weights": "prefix(0.1"}, "cannot read"),
        ({"token_weights": "prefix**entropy"}, "cannot read ''"),
        ({"token_weights": "prefix(0.5)*prefix(0.1)"}, "prefix is named twice"),
        ({"token_weights": "prefix(half)"}, "'half' is not a finite number"),
        ({"token_weights": "prefix(nan)"}, "'nan' is not a finite number"),
        ({"token_weights": "prefix(0.1,0.2)"}, "one value too many; it takes share"),
        ({"token_weights": "contrast(1)"}, "one value too many; it takes none"),
        ({"token_weights": "prefix(size=1)"}, "no option of it"),
        ({"token_weights": "prefix(0.1,share=0.1)"}, "given twice"),
        ({"token_weights": "prefix(1.2)"}, "between 0 and 1"),
        ({"token_weights": "critical(0.4,0.4,0.4)"}, "together at most 1"),
        ({"token_weights": "critical(0.2,0.75,0)"}, "eight tenths"),
        ({"token_weights": "divergence(-1)"}, "below 0"),
        ({"token_weights": "divergence(gradient=both)"}, "not detached or attached"),
        ({"token_weights": "prefix(0.05)"}, "select none of 16 tokens"),
        ({"token_weights": "critical(0,0,0)"}, "select none of 16 tokens"),
        ({"token_weights": "prefix", "ratio": "gspo"}, "method.ratio=gspo"),
        ({"token_weights": "prefix", "ratio": "sequence"}, "method.ratio=sequence"),
        ({"token_weights": "divergence", "kl_weight": 0.0}, "method.kl_weight=0"),
        ({"token_weights": "divergence(gradient=attached)", "weight_sum": "weights"}, "attached"),
        ({"weight_sum": "tokens"}, "changes nothing without weights"),
        ({"entropy_reward": 0.4, "kl_weight": 0.0}, "method.entropy_reward"),
    ],
    ids=str,
)
def test_what_cannot_be_or_contradicts_itself(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as raised:
        make(CHEAP, **changes)
    assert message in str(raised.value)


CHEAP: Any = SimpleNamespace(num_tokens=16, reference=lambda: None)
"""Of a backbone what is looked at before anything is computed."""


def test_backbones_that_lack_what_weights_need() -> None:
    with pytest.raises(UserError, match="null condition"):
        make(CHEAP, token_weights="contrast")
    with pytest.raises(UserError, match="entropy of guided"):
        make(CHEAP, token_weights="entropy", cfg_scale=2.0, preset="faithful")
    assert make(CHEAP, token_weights="entropy").weights is not None
