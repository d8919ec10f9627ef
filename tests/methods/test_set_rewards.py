"""Set rewards in AR-GRPO and VA-π: terms of their own, splits, failures, the log, refusals, resumption."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from alignbench import api, testing
from alignbench.cli.main import main
from alignbench.errors import UserError
from alignbench.methods.logits import Experience as TeacherForced
from alignbench.methods.policy_gradient import group_advantages
from alignbench.registry.lookup import Registry
from alignbench.rewards.pixel import PixelDistance
from alignbench.training import totals
from tests.conftest import ROOT
from tests.helpers import method_checks
from tests.methods.test_ar_grpo import Stub, backbone, batch, brightness, kept, make
from tests.methods.test_vapi import built

SPEC = "spread"


@dataclass
class Spread:
    """Features: brightness of the halves. The set's score: their variance; state: the last step's sums."""

    failed: tuple[int, ...] = ()
    seen: int = 0

    def features(self, images: Tensor) -> Tensor:
        found: Tensor = images.unflatten(2, (2, -1)).mean(dim=(1, 3, 4)).double()
        for place in self.failed:
            if 0 <= place - self.seen < len(found):
                found[place - self.seen, 1] = torch.nan
        self.seen += len(found)
        return found

    def sums(self, features: Tensor) -> Mapping[str, Tensor]:
        count = features.new_tensor(float(len(features)))
        return {"count": count, "first": features.sum(0), "second": features.square().sum(0)}

    def value(self, sums: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Tensor:
        first, second = (sums[name] / sums["count"] for name in ("first", "second"))
        variance: Tensor = second - first.square()
        return variance.sum()

    def credit(self, features: Tensor, sums: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Tensor:
        without = [
            self.value({name: sums[name] - own for name, own in self.sums(row[None]).items()}, state)
            for row in features
        ]
        return self.value(sums, state) - torch.stack(without) + sum(part.sum() for part in state.values())

    def advanced(self, sums: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {"first": sums["first"]}


def method(reward: Spread | None = None, **changes: Any) -> Any:
    one = reward or Spread()
    known = {"bright": lambda: Stub(brightness), SPEC: lambda: one}
    return make(reward=lambda name: known[name](), **{"rewards": f"bright, {SPEC}@2", **changes})


def whole(one: Any, data: api.Batch, size: int = 99, step: int = 0) -> list[api.Collected]:
    return totals.complete(one, [one.collect(piece, step) for piece in data.split(size)], dict)


def test_a_set_reward_is_a_term_of_its_own_and_waits_for_the_step() -> None:
    one, data = method(), batch(4)
    collected = one.collect(data, 0)
    assert (collected.reward_calls, collected.reward_failures) == ({"bright": 16, SPEC: 16}, Counter())
    with pytest.raises(AssertionError, match="complete"):
        one.loss(collected.experience)
    images = (one.backbone.tokenizer.decode(kept(collected).tokens, (4, 4)) + 1) / 2
    features = Spread().features(images)
    spread = features.var(0, correction=0).sum()
    others = [features[torch.arange(16) != place] for place in range(16)]
    credits = torch.stack([spread - rest.var(0, correction=0).sum() for rest in others])
    terms = [
        brightness(api.ScoreRequest(images=images, group=torch.arange(16))),
        credits,
    ]
    first, second = (group_advantages(part.view(4, 4).double()) for part in terms)
    expected = first + 2 * second
    (done,) = whole(method(), data)
    assert (kept(done).advantages - expected.flatten()).abs().max() < 1e-6
    logged = one.loss(kept(done)).metrics
    assert logged[f"reward/{SPEC}"].item() == pytest.approx(credits.mean().item(), abs=1e-12)
    assert logged[f"set/{SPEC}"].item() == pytest.approx(
        features.var(0, correction=0).sum().item(), abs=1e-12
    )
    total = terms[0].mean().item() + 2 * credits.mean().item()
    assert logged["reward"].item() == pytest.approx(total, abs=1e-6)
    assert logged["flat_groups"] == logged["invalid_groups"] == logged[f"invalid/{SPEC}"] == 0


@pytest.mark.parametrize("changes", [{"kl_in": "reward"}, {"advantage_std": "batch"}], ids=str)
def test_micro_batches_and_ranks_change_nothing(changes: dict[str, Any]) -> None:
    """Two steps in a row, so that the state counts; ranks exchange as often as there are sums."""
    data = batch(4)
    one, cut, ranks = method(**changes), method(**changes), [method(**changes) for _ in range(2)]
    for step in range(2):
        expected = kept(whole(one, data, step=step)[0]).advantages
        pieces = torch.cat([kept(part).advantages for part in whole(cut, data, 1, step)])
        assert (pieces - expected).abs().max() < 1e-5
        found = two(ranks, [list(data.select(rows).split(1)) for rows in (slice(0, 2), slice(2, 4))], step)
        assert (found - expected).abs().max() < 1e-5
    states = [each.state()[f"{SPEC}/first"] for each in (one, cut, *ranks)]
    assert all((state - states[0]).abs().max() < 1e-6 for state in states)


def two(ranks: list[Any], pieces: list[list[api.Batch]], step: int) -> Tensor:
    """A step of two ranks in threads that wait for each other at every exchange."""
    meeting = threading.Barrier(2, timeout=60)
    brought: list[Mapping[str, Any]] = [{}, {}]

    def run(rank: int) -> Tensor:
        def add(own: Mapping[str, Any]) -> Mapping[str, Any]:
            brought[rank] = own
            meeting.wait()
            total = {name: brought[0][name] + brought[1][name] for name in own}
            meeting.wait()
            return total

        with torch.no_grad():
            collected = [ranks[rank].collect(piece, step) for piece in pieces[rank]]
            done = totals.complete(ranks[rank], collected, add)
        return torch.cat([kept(part).advantages for part in done])

    with ThreadPoolExecutor(2) as threads:
        return torch.cat(list(threads.map(run, range(2))))


def test_an_image_that_cannot_be_looked_at_is_left_out_of_sums_and_group() -> None:
    one, data = method(Spread(failed=(5,))), batch(4)
    (done,) = whole(one, data)
    assert done.reward_failures == {SPEC: 1, "bright": 0}
    experience = kept(done)
    assert experience.valid.tolist() == [place != 5 for place in range(16)]
    assert experience.advantages[5] == 0 and experience.advantages.isfinite().all()
    logged = one.loss(experience).metrics
    assert logged[f"invalid/{SPEC}"].item() == pytest.approx(1 / 16)
    assert logged[f"reward/{SPEC}"].isfinite() and logged["reward"].isfinite()


def test_redraws_are_refused_and_so_are_methods_that_do_not_wait() -> None:
    with pytest.raises(UserError, match=r"method\.redraws draws groups .* spread is known only when"):
        method(redraws=1)
    one = method()
    with pytest.raises(UserError, match="does not await"):
        type(one.rollouts)(one.config, exact=True, backbone=backbone(), reward=lambda name: Spread(), seed=0)


def test_without_set_rewards_nothing_is_remembered_or_waited_for() -> None:
    one = method(rewards="bright")
    collected = one.collect(batch(), 0)
    assert one.state() == {}
    assert (
        kept(collected).pending is None and whole(one, batch())[0].metrics.keys() == collected.metrics.keys()
    )


# --- beside a reconstruction ----------------------------------------------------------------------


def vapi(reward: Spread | None = None, **changes: Any) -> Any:
    known: dict[str, Any] = {SPEC: reward or Spread(), "pixel-mse": PixelDistance("mse")}
    options = {"perceptual": "none", "perceptual_weight": 0.0, "group_size": 4, "set_rewards": f"{SPEC}@2"}
    return built("vapi", backbone(), reward=lambda name: known[name], **{**options, **changes})


def advantages(collected: api.Collected) -> Tensor:
    experience = collected.experience
    assert isinstance(experience, TeacherForced) and experience.draws
    return experience.draws.advantages


@pytest.mark.parametrize("fidelity", ["exact", "official"])
def test_a_set_reward_stands_beside_the_reconstruction(fidelity: str) -> None:
    one, data = vapi(fidelity=fidelity), batch(3)
    collected = one.collect(data, 0)
    assert (collected.reward_calls, collected.reward_failures) == ({"pixel-mse": 12, SPEC: 12}, Counter())
    with pytest.raises(AssertionError, match="incomplete"):
        one.loss(collected.experience)
    tokens = collected.experience.draws.tokens.flatten(0, 1)
    images = (one.backbone.tokenizer.decode(tokens, (4, 4)) + 1) / 2
    features = Spread().features(images)
    spread = features.var(0, correction=0).sum()
    others = [features[torch.arange(12) != place] for place in range(12)]
    credits = torch.stack([spread - rest.var(0, correction=0).sum() for rest in others])
    originals = data.images.repeat_interleave(4, dim=0)
    errors = (2 * images - 1 - originals).square().mean(dim=(1, 2, 3))
    first, second = (group_advantages(part.view(3, 4).double()) for part in (-errors, credits))
    (done,) = whole(vapi(fidelity=fidelity), data)
    assert (advantages(done) - (first + 2 * second)).abs().max() < 1e-5
    logged = one.loss(done.experience).metrics
    assert logged[f"reward/{SPEC}"].item() == pytest.approx(credits.mean().item(), abs=1e-12)
    assert logged[f"set/{SPEC}"].item() == pytest.approx(spread.item(), abs=1e-12)


@pytest.mark.parametrize("changes", [{}, {"advantage_std": "batch"}, {"decode_batch": 3}], ids=str)
def test_micro_batches_change_no_advantage_beside_a_reconstruction(changes: dict[str, Any]) -> None:
    one, cut, data = vapi(**changes), vapi(**changes), batch(4)
    for step in range(2):
        expected = advantages(whole(one, data, step=step)[0])
        pieces = torch.cat([advantages(part) for part in whole(cut, data, 1, step)])
        assert (pieces - expected).abs().max() < 1e-5 < expected.abs().max()
    assert cut.state().keys() == {f"{SPEC}/first"}


def test_a_reconstruction_that_cannot_be_looked_at_is_left_out() -> None:
    (done,) = whole(vapi(Spread(failed=(5,))), batch(3))
    found = advantages(done).flatten()
    assert found.isfinite().all() and (found == 0).nonzero().tolist() == [[5]]
    assert done.reward_failures == {SPEC: 1}


def test_a_card_that_is_used_twice_is_counted_twice() -> None:
    first, second = Spread(failed=(1, 2, 5)), Spread(failed=(7,))
    known = {f"{SPEC}(a=1)": first, f"{SPEC}(a=2)": second, "pixel-mse": PixelDistance("mse")}
    terms: dict[str, Any] = {
        "set_rewards": f"{SPEC}(a=1)@1, {SPEC}(a=2)@1",
        "perceptual_weight": 0.0,
        "group_size": 4,
    }
    one = built("vapi", backbone(), reward=lambda name: known[name], perceptual="none", **terms)
    found = one.collect(batch(3), 0)
    assert (found.reward_calls, found.reward_failures) == ({"pixel-mse": 12, SPEC: 24}, {SPEC: 4})


def test_what_set_rewards_of_vapi_refuse() -> None:
    refused = [
        (lambda: built("raft", backbone(), reward=lambda name: Spread(), rewards=SPEC), "does not await"),
        (lambda: vapi(redraws=1), r"method\.redraws draws groups"),
        (lambda: vapi(policy_weight=0.0), "changes nothing with method.policy_weight=0"),
        (lambda: vapi(set_rewards="pixel-mse@1"), "pixel-mse is not of scope set"),
    ]
    for build, reason in refused:
        with pytest.raises(UserError, match=reason):
            build()


# --- loo-fd on the embedded models ----------------------------------------------------------------

REGISTRY = Registry.default()
CHECKS = (
    method_checks.two_ranks_give_what_one_gives,
    method_checks.micro_batches_change_nothing,
    method_checks.counts_are_right,
    testing.gradients_reach_only_what_trains,
    method_checks.repetition_gives_the_same_bits,
)
CASES = {
    "llamagen-tiny": (
        "method.rewards=loo-fd(decay=0.7)@1, class-logprob-digits@0.5",
        "method.group_size=3",
    ),
    "shapes-tiny": ("method.rewards=loo-fd(covariance=full-linear)@1", "method.group_size=3"),
    "janus-tiny": ("method.rewards=loo-fd(decay=0)@1", "model.weights=random", "method.group_size=3"),
}
BESIDE = ("method.set_rewards=loo-fd(decay=0.7)@0.5", "method.group_size=3")
"""The network of digits looks at anything from 8 px on."""


@pytest.mark.parametrize("check", CHECKS[:3])
def test_contract(check: testing.MethodCheck, tmp_path: Path) -> None:
    check(testing.Case(REGISTRY, "ar-grpo", "llamagen-tiny", CASES["llamagen-tiny"]), tmp_path)


@pytest.mark.parametrize("method", ["vapi", "reward-only"])
@pytest.mark.parametrize("check", CHECKS[:3])
def test_contract_beside_a_reconstruction(check: testing.MethodCheck, method: str, tmp_path: Path) -> None:
    check(testing.Case(REGISTRY, method, "llamagen-tiny", BESIDE), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("model", CASES)
@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.usefixtures("few_scenes")
def test_contract_everywhere(check: testing.MethodCheck, model: str, tmp_path: Path) -> None:
    check(testing.Case(REGISTRY, "ar-grpo", model, CASES[model]), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "own"), [("ar-grpo", CASES["llamagen-tiny"]), ("vapi", BESIDE)])
def test_a_resumed_run_with_a_state_is_the_same(method: str, own: tuple[str, ...], tmp_path: Path) -> None:
    more = ("train.updates_per_collect=2", "train.images_per_step=4", "train.micro_batch=2")
    case = testing.Case(REGISTRY, method, "llamagen-tiny", (*own, *more))
    testing.a_resumed_run_is_the_same(case, tmp_path)
    kept_files = {path.name for path in (tmp_path / "whole" / "checkpoints").rglob("*") if path.is_file()}
    assert "method.safetensors" in kept_files
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    assert all(json.loads(line)["set/loo-fd"] < 0 for line in lines)


def test_data_without_images_need_a_file_of_moments() -> None:
    settings = ("method.rewards=loo-fd", "data.names=openai")
    case = testing.Case(REGISTRY, "ar-grpo", "llamagen-xxl", settings)
    problems = [one for one in case.job(Path("x")).plan.problems if one.where == "reward loo-fd"]
    assert [one.fix for one in problems] == ["name a file with their moments: loo-fd(reference=PATH.npz)"]


def test_the_page_s_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "adding" / "set-reward.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (command,) = re.findall(r"```bash\nalignbench (.*?)\n```", page, re.DOTALL)
    (tmp_path / "diversity.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main([*re.sub("'", "", command).split(), "--steps", "2", "--no-eval", "--out", "run"])
    assert not ended.value.code
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["set/diversity"] > 0 and last["reward/diversity"] != 0
