"""Imitation and preferences on AR-GRPO's rollouts: the same tokens, worked numbers, closed-form gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from alignbench import api
from alignbench.errors import UserError
from alignbench.methods import groups, pairs, raft
from alignbench.methods.pairs import PreferencePairs
from tests.methods import test_ar_grpo
from tests.methods.test_ar_grpo import FILTERED, GROUP, NAN, Stub, backbone, batch, tables
from tests.methods.test_switches import NEW, OLD, REWARDS, f64
from tests.methods.test_vapi import built

METHODS = ("raft", "pairs")
SIMPO: dict[str, Any] = {"loss": "simpo", "beta": 2.0, "gamma": 0.5}


def make(name: str, model: Any = None, **changes: Any) -> Any:
    options = {"rewards": "bright", "group_size": GROUP, "reward": test_ar_grpo.rewards, **changes}
    return built(name, model or backbone(), **options)


# --- the same rollouts and reward calls -----------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, FILTERED], ids=str)
def test_the_first_step_is_ar_grpos(changes: dict[str, Any]) -> None:
    """Tokens, images that the rewards see, and what is logged and counted of them: bit for bit."""
    seen: dict[str, list[api.ScoreRequest]] = {}
    collected: dict[str, api.Collected] = {}
    for name in ("ar-grpo", *METHODS):
        stub = Stub(test_ar_grpo.brightness, seen.setdefault(name, []))
        method = make(name, reward=lambda _, stub=stub: stub, **changes)
        collected[name] = method.collect(batch(), step=0)
    theirs = collected.pop("ar-grpo")
    tokens = test_ar_grpo.kept(theirs).tokens.unflatten(0, (3, GROUP))
    best = test_ar_grpo.kept(theirs).advantages.view(3, GROUP).argsort(dim=1, descending=True)
    for name, ours in collected.items():
        places = best[:, [0]] if name == "raft" else best[:, [0, -1]]
        expected = torch.stack([rows[place] for rows, place in zip(tokens, places, strict=True)])
        assert isinstance(ours.experience, raft.Experience | pairs.Experience)
        assert torch.equal(ours.experience.tokens, expected.flatten(0, 1))
        assert ours.experience.used.all()
        assert ours.metrics["flat_groups"] == 0
        for asked, of_ar_grpo in zip(seen[name], seen["ar-grpo"], strict=True):
            assert torch.equal(asked.images, of_ar_grpo.images)
            assert torch.equal(asked.group, of_ar_grpo.group)
        assert ours.metrics["reward"] == theirs.metrics["reward"]
        for count in ("images", "sequences", "tokens", "reward_calls", "reward_failures"):
            assert getattr(ours, count) == getattr(theirs, count)


# --- worked numbers -------------------------------------------------------------------------------


def config(**changes: Any) -> PreferencePairs.Config:
    made: PreferencePairs.Config = make("pairs", **changes).config
    return made


def test_numbers_that_were_worked_out_by_hand() -> None:
    """Four sequences of two tokens, the reference being the policy that drew them."""
    order, valid, differ = groups.rank([REWARDS], [REWARDS >= 0], [1.0])
    assert (order.tolist(), valid.tolist(), differ.tolist()) == ([[0, 2, 3, 1]], [4], [True])
    new = NEW[[0, 1]].clone().requires_grad_()
    margin, loss = pairs.pair_losses(new, OLD[[0, 1]], config(beta=0.1))
    assert margin.item() == pytest.approx(1.2584609896100056, abs=1e-15)
    assert loss.item() == pytest.approx(0.6322024811902693, abs=1e-15)
    (gradient,) = torch.autograd.grad(loss.sum(), new)
    slope = 0.046857993158
    assert gradient.flatten().tolist() == pytest.approx([-slope, -slope, slope, slope], abs=1e-12)
    _, loss = pairs.pair_losses(NEW[[0, 1]], OLD[[0, 1]], config(loss="ipo", beta=0.1))
    assert loss.item() == pytest.approx(13.999114166270136, abs=1e-13)
    _, loss = pairs.pair_losses(NEW[[0, 1]], None, config(**SIMPO))
    assert loss.item() == pytest.approx(0.4697129667120484, abs=1e-15)
    kept = raft.imitation(NEW[[0]].unsqueeze(0), torch.tensor([True]))
    assert kept.item() == pytest.approx(0.7570638663148876, abs=1e-15)


@pytest.mark.parametrize(
    ("name", "changes"),
    [("raft", {}), ("raft", {"keep": 2}), ("pairs", {}), ("pairs", {"loss": "ipo"}), ("pairs", SIMPO)],
    ids=str,
)
def test_on_policy_gradient_of_guided_samples(name: str, changes: dict[str, Any]) -> None:
    """−Σ w ∇log π: w = 1/(kT) for imitation; for pairs ±β/2, ±1/β and ±βσ(γ − β·margin)/T."""
    model = backbone(torch.float64)
    method = make(name, model, cfg_scale=2.0, temperature=0.8, **changes)
    experience = method.collect(batch(), step=0).experience
    loss = method.loss(experience)
    weights = f64([[[-1.0], [1.0]]])
    if name == "raft":
        weights = f64([[[-1 / 16 / method.config.keep]] * method.config.keep])
    elif changes == SIMPO:
        table = test_ar_grpo.guided_table(model, experience, method.config.sampling)
        mean = test_ar_grpo.of_tokens(table, experience.tokens).mean(-1).view(3, 2, 1)
        weights = weights * 2 * torch.sigmoid(0.5 - 2 * (mean[:, [0]] - mean[:, [1]])) / 16
    else:
        weights = weights * (1 / 0.1 if changes else 0.1 / 2)
        assert abs(loss.metrics["margin"].item()) < 1e-12
    weights = (weights / 3).expand(3, -1, 16).flatten(0, 1)
    expected = test_ar_grpo.head_gradient(model, experience, weights, scale=2.0, temperature=0.8)
    assert expected.abs().max().item() > 1e-4
    error = test_ar_grpo.gap(test_ar_grpo.output_gradient(model, loss), expected)
    assert error < 1e-9 * max(1.0, float(expected.abs().max()))


# --- which samples --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "order", "valid", "differ"),
    [
        ([[3.0, 5.0, 5.0, 1.0]], [1, 2, 0, 3], 4, True),
        ([[2.0, 2.0, 2.0, 2.0]], [0, 1, 2, 3], 4, False),
        ([[1.0, NAN, 4.0, 1.0]], [2, 0, 3, 1], 3, True),
        ([[NAN, NAN, 4.0, NAN]], [2, 0, 1, 3], 1, False),
        ([[NAN] * 4], [0, 1, 2, 3], 0, False),
        ([[0.0, 1.0, 2.0, 9.0], [90.0, 10.0, 20.0, 0.0]], [3, 0, 2, 1], 4, True),
        ([[0.1, 0.2, 0.7, 0.4], [-1.0, -2.0, -7.0, -4.0]], None, 4, False),  # they cancel, but for rounding
        ([[0.0, 1.0, 2.0, NAN], [NAN, 1.0, 1.0, 1.0]], [2, 1, 0, 3], 2, True),
    ],
)  # fmt: skip
def test_ranks(scores: list[list[float]], order: list[int] | None, valid: int, differ: bool) -> None:
    values = [f64([part]) for part in scores]
    weights = [2.0 if len(scores) > 1 and order == [3, 0, 2, 1] else 1.0] + [1.0] * (len(scores) - 1)
    found = groups.rank(values, [~part.isnan() for part in values], weights)
    assert (int(found.valid), bool(found.differ)) == (valid, differ)
    assert order is None or found.order[0].tolist() == order


@pytest.mark.parametrize(
    ("name", "changes", "other"),
    [
        ("raft", {}, [NAN] * 4), ("raft", {"keep": 2}, [NAN, 1.0, NAN, 2.0]), ("raft", {}, [3.0] * 4),
        ("pairs", {}, [NAN] * 4), ("pairs", SIMPO, [NAN, 1.0, NAN, NAN]),
        ("pairs", {"loss": "ipo"}, [3.0] * 4),
    ],
)  # fmt: skip
def test_a_group_that_selects_nothing_gives_nothing(
    name: str, changes: dict[str, Any], other: list[float]
) -> None:
    """Same gradient as from the first group alone, in the larger denominator."""
    model, gradients = backbone(torch.float64), []
    for images in (1, 2):
        values = [1.0, NAN, 4.0, 5.0, *other][: images * GROUP]
        method = make(name, model, rewards="a", reward=tables(a=values), **changes)
        collected = method.collect(batch(images), step=0)
        assert collected.metrics["flat_groups"].item() == (images - 1) / 2
        loss = method.loss(collected.experience)
        gradients.append(images * test_ar_grpo.output_gradient(model, loss))
    assert gradients[0].abs().max().item() > 1e-4
    assert test_ar_grpo.gap(*gradients) < 1e-12
    method = make(name, model, rewards="a", reward=tables(a=other), **changes)
    loss = method.loss(method.collect(batch(1), step=0).experience)
    assert loss.value.item() == 0 and loss.value.requires_grad


# --- options --------------------------------------------------------------------------------------


def test_what_is_scored_is_what_was_sampled_unless_told_otherwise() -> None:
    for name in METHODS:
        for exact in (True, False):
            model = backbone()
            method = make(name, model, cfg_scale=2.0, top_k=20, exact=exact)
            loss = method.loss(method.collect(batch(), step=0).experience)
            assert (test_ar_grpo.null_row_gradient(model, loss) > 1e-5) == exact


def test_a_reference_only_where_one_is_read() -> None:
    assert make("pairs", **SIMPO).reference is None
    method = make("pairs")
    assert method.reference is not None
    first = method.loss(method.collect(batch(), step=0).experience)
    assert first.value.item() == pytest.approx(torch.tensor(2.0).log().item(), abs=1e-6)


@pytest.mark.parametrize(
    ("name", "changes", "named"),
    [
        ("raft", {"keep": GROUP}, r"method\.keep=4"),
        ("pairs", {"gamma": 0.5}, r"method\.gamma"),
        ("pairs", {"loss": "ipo", "gamma": 1.0}, r"method\.gamma"),
    ],
)
def test_options_that_mean_nothing(name: str, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        make(name, **changes)
