"""AR-GRPO on the shipped LlamaGen-tiny: on-policy to rounding, advantages by hand, closed-form gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from statistics import mean, stdev
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from alignbench import api, randomness
from alignbench.backbones.base import unwrap
from alignbench.backbones.generate import filter_logits
from alignbench.backbones.llamagen.model import LlamaGen, build
from alignbench.errors import UserError
from alignbench.files import package_file
from alignbench.methods.ar_grpo import ArGrpo, Experience
from alignbench.methods.image_rewards import describe
from alignbench.methods.tokens.weights import parse
from alignbench.registry.lookup import Registry
from alignbench.registry.reward_spec import parse_terms, resolve
from alignbench.rewards import transforms
from tests.methods.test_vapi import built

REGISTRY = Registry.default()
MODEL = REGISTRY.model("llamagen-tiny")
FILES = {str(file.role): package_file(file.path) for file in MODEL.files}
GROUP = 4
FILTERED = {"cfg_scale": 2.0, "temperature": 0.8, "top_k": 20, "top_p": 0.9}


@dataclasses.dataclass
class Stub:
    """Any function of the request as a reward; where it gives NaN, scoring failed."""

    function: Callable[[api.ScoreRequest], Tensor]
    requests: list[api.ScoreRequest] = dataclasses.field(default_factory=list)

    def score(self, request: api.ScoreRequest) -> api.Scores:
        self.requests.append(request)
        values = self.function(request).float()
        return api.Scores(values, ~values.isnan())


def brightness(request: api.ScoreRequest) -> Tensor:
    return request.images.mean(dim=(1, 2, 3))


SCORES: dict[str, Callable[[api.ScoreRequest], Tensor]] = {
    "bright": brightness,
    "top": lambda request: 10 * request.images[:, :, :4].mean(dim=(1, 2, 3)),
    "same": lambda request: torch.full((len(request.images),), 3.7),
}


def rewards(name: str) -> api.Reward:
    return Stub(SCORES[name])


def backbone(dtype: torch.dtype = torch.float32) -> LlamaGen:
    return build(MODEL, FILES, dtype=dtype)


def make(model: Any = None, **changes: Any) -> ArGrpo:
    options = {"rewards": "bright", "group_size": GROUP, "reward": rewards, **changes}
    method: ArGrpo = built("ar-grpo", model or backbone(), **options)
    return method


def kept(collected: api.Collected) -> Experience:
    assert isinstance(collected.experience, Experience)
    return collected.experience


def batch(size: int = 3) -> api.Batch:
    labels = api.ClassLabels((torch.arange(size) * 3) % 10)
    return api.Batch(torch.arange(size) + 100, labels, torch.zeros(size, 3, 8, 8))


def guided_table(model: LlamaGen, experience: Experience, sampling: api.Sampling) -> Tensor:
    """Log-probabilities [N, T, V] from two separate passes, mixed and filtered here."""
    context = experience.tokens[:, :-1]
    with torch.no_grad():
        logits = model.policy(experience.condition, context)
        if sampling.cfg_scale > 1:
            null = model.policy(unwrap(model.policy).null(experience.condition), context)
            logits = sampling.cfg_scale * logits + (1 - sampling.cfg_scale) * null
    return filter_logits(logits, sampling).log_softmax(-1)


def of_tokens(table: Tensor, tokens: Tensor) -> Tensor:
    return table.gather(-1, tokens[..., None])[..., 0]


def gap(left: Tensor, right: Tensor) -> float:
    return (left - right).abs().max().item()


# --- on-policy ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [{}, {"preset": "faithful", "temperature": 0.7}, {"cfg_scale": 2.0}, {"top_k": 10}, FILTERED],
    ids=str,
)
def test_rollout_and_teacher_forced_logprobs_agree(changes: dict[str, Any]) -> None:
    model, data = backbone(), batch(6)
    method = make(model, **changes)
    collected = method.collect(data, step=0)
    experience = kept(collected)
    uniforms = randomness.uniforms(0, "ar-grpo-token", 0, data.index.tolist(), (GROUP, 16))
    rollout = model.generate(
        data.condition.repeat(GROUP), torch.from_numpy(uniforms).view(-1, 16), method.config.sampling
    )
    assert torch.equal(rollout.tokens, experience.tokens)
    assert gap(rollout.logprobs, experience.logprobs) < 1e-5
    assert collected.metrics["rollout_gap"].item() < 1e-5
    expected = guided_table(model, experience, method.config.sampling)
    assert gap(of_tokens(expected, experience.tokens), experience.logprobs) < 1e-5
    entropy = torch.special.entr(expected.exp()).sum(-1).mean().item()
    assert collected.metrics["entropy"].item() == pytest.approx(entropy, abs=1e-5)


def null_row_gradient(model: LlamaGen, loss: api.Loss) -> float:
    loss.value.backward()
    table = unwrap(model.policy).get_parameter("cls_embedding.embedding_table.weight").grad
    assert table is not None
    return float(table[10].abs().max())


def test_faithful_reads_the_conditional_model_although_it_sampled_with_guidance() -> None:
    model = backbone()
    method = make(model, preset="faithful", cfg_scale=2.0, top_k=20)
    collected = method.collect(batch(), step=0)
    experience = kept(collected)
    conditional = of_tokens(guided_table(model, experience, api.Sampling()), experience.tokens)
    assert gap(conditional, experience.logprobs) < 1e-5
    assert collected.metrics["rollout_gap"].item() > 0.05
    fixed = make(model, preset="fixed", cfg_scale=2.0, top_k=20)
    guided = fixed.collect(batch(), step=0)
    assert torch.equal(kept(guided).tokens, experience.tokens)
    loss = method.loss(experience)
    assert loss.metrics["ratio_deviation"].item() < 1e-5
    assert null_row_gradient(model, loss) == 0.0, "faithful does not train the unconditional branch"
    assert null_row_gradient(model, fixed.loss(guided.experience)) > 1e-5, "fixed does"


@pytest.mark.parametrize("changes", [{}, {"cfg_scale": 2.0}, FILTERED], ids=str)
@pytest.mark.parametrize("preset", ["fixed", "faithful"])
def test_first_update_is_on_policy_in_train_mode_too(preset: str, changes: dict[str, Any]) -> None:
    model = backbone()
    method = make(model, preset=preset, **changes)
    model.policy.train()
    loss = method.loss(method.collect(batch(), step=0).experience)
    assert loss.metrics["ratio_deviation"].item() < 1e-6
    assert loss.metrics["clip_fraction"].item() == 0.0
    assert loss.metrics["kl"].item() == pytest.approx(0.0, abs=1e-10)
    assert loss.metrics["policy_loss"].item() == pytest.approx(0.0, abs=1e-6)  # advantages sum to 0
    assert model.policy.training


def test_a_token_that_left_the_top_k_set_keeps_a_finite_ratio() -> None:
    model = backbone()
    method = make(model, preset="fixed", top_k=2)
    experience = kept(method.collect(batch(), step=0))
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    table = guided_table(model, experience, method.config.sampling)
    assert of_tokens(table, experience.tokens).isinf().any()  # the case does occur
    loss = method.loss(experience)
    loss.value.backward()
    assert loss.value.isfinite()
    assert all(part.grad is None or part.grad.isfinite().all() for part in model.policy.parameters())


# --- gradients ------------------------------------------------------------------------------------


def head_gradient(
    model: LlamaGen, experience: Experience, weights: Tensor, *, scale: float = 1.0, temperature: float = 1.0
) -> Tensor:
    """Σ w[n,t] ∇ log p(token) for the output matrix, from (onehot − p) ⊗ hidden; nothing differentiated."""
    gpt, context = unwrap(model.policy), experience.tokens[:, :-1]
    hidden: list[Tensor] = []
    hook = gpt.output.register_forward_pre_hook(lambda _module, inputs: hidden.append(inputs[0]))
    with torch.no_grad():
        logits = gpt(experience.condition, context)
        null = gpt(gpt.null(experience.condition), context)
    hook.remove()
    mixed = (null + scale * (logits - null)) / temperature
    combined = (hidden[1] + scale * (hidden[0] - hidden[1])) / temperature
    combined = combined[:, -experience.tokens.shape[1] :]
    onehot = torch.nn.functional.one_hot(experience.tokens, mixed.shape[-1])
    return torch.einsum("ntv,ntd->vd", weights[..., None] * (onehot - mixed.softmax(-1)), combined)


def output_gradient(model: LlamaGen, loss: api.Loss) -> Tensor:
    (gradient,) = torch.autograd.grad(loss.value, [unwrap(model.policy).output.weight])
    return gradient


@pytest.mark.parametrize(("scale", "temperature"), [(1.0, 1.0), (1.0, 0.8), (2.0, 0.8)])
def test_on_policy_gradient_is_reinforce(scale: float, temperature: float) -> None:
    model = backbone(torch.float64)
    method = make(model, cfg_scale=scale, temperature=temperature, kl_weight=0.5)
    experience = kept(method.collect(batch(), step=0))
    advantages = experience.advantages.double()
    weights = (-advantages[:, None] / experience.tokens.numel()).expand(-1, 16)
    expected = head_gradient(model, experience, weights, scale=scale, temperature=temperature)
    gradient = output_gradient(model, method.loss(experience))
    assert expected.abs().max().item() > 1e-4
    assert gap(gradient, expected) < 1e-9


def test_kl_gradient_leads_back_to_the_reference() -> None:
    model = backbone(torch.float64)
    method = make(model, rewards="same", kl_weight=0.3)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
            parameter.add_(0.02 * noise)
    experience = kept(method.collect(batch(), step=0))
    assert experience.advantages.abs().max().item() == 0.0
    assert experience.reference_logprobs is not None
    loss = method.loss(experience)
    difference = experience.reference_logprobs - experience.logprobs
    kl = (difference.exp() - difference - 1).mean().item()
    assert kl > 1e-3
    assert loss.metrics["kl"].item() == pytest.approx(kl, rel=1e-6)
    assert loss.value.item() == pytest.approx(0.3 * kl, rel=1e-6)
    weights = 0.3 * (1 - difference.exp()) / difference.numel()
    gradient = output_gradient(model, loss)
    assert gap(gradient, head_gradient(model, experience, weights)) < 1e-9
    with torch.no_grad():
        unwrap(model.policy).output.weight.sub_(gradient)
    assert method.loss(experience).metrics["kl"].item() < kl


@pytest.mark.parametrize("preset", ["fixed", "faithful"])
def test_kl_is_exactly_zero_before_the_first_update_and_equal_rewards_pull_nowhere(preset: str) -> None:
    collected = make(preset=preset, rewards="same").collect(batch(), step=0)
    experience = kept(collected)
    assert experience.reference_logprobs is not None
    assert torch.equal(experience.reference_logprobs, experience.logprobs)
    assert experience.advantages.count_nonzero().item() == 0
    flat = {name: collected.metrics[name].item() for name in ("flat_groups", "flat/same", "invalid_groups")}
    assert flat == {"flat_groups": 1.0, "flat/same": 1.0, "invalid_groups": 0.0}
    without = make(kl_weight=0.0)
    assert without.reference is None
    assert "kl" not in without.loss(without.collect(batch(), step=0).experience).metrics


def test_clip_takes_the_gradient_of_tokens_that_moved_too_far() -> None:
    model = backbone()
    method = make(model, kl_weight=0.0)
    experience = kept(method.collect(batch(), step=0))
    moved = dataclasses.replace(experience, logprobs=experience.logprobs - 1.0)  # every ratio is e
    loss = method.loss(moved)
    assert loss.metrics["clip_fraction"].item() == 1.0
    ratio = torch.where(experience.advantages > 0, 1.2, torch.tensor(1.0).exp())
    expected = -(ratio * experience.advantages).mean().item()
    assert loss.value.item() == pytest.approx(expected, abs=1e-5)


# --- rewards and advantages -----------------------------------------------------------------------


def z(values: list[float], epsilon: float) -> list[float]:
    return [(value - mean(values)) / (stdev(values) + epsilon) for value in values]


def tables(**named: list[float]) -> Callable[[str], api.Reward]:
    """Rewards that read their scores off lists."""
    return lambda name: Stub(lambda request: torch.tensor(named[name])[: len(request.images)])


NAN = float("nan")
A = [1.0, 2.0, 4.0, 5.0, 0.1, 0.2, 0.3, 0.9]
B = [30.0, -10.0, 20.0, 0.0, 1.0, 1.0, 1.0, 1.0]


def test_advantages_by_hand() -> None:
    totals = [2 * a + b for a, b in zip(A, B, strict=True)]
    left, right = z(A[:4], 1e-8), z(B[:4], 1e-8)
    expected = {
        "faithful": z(totals[:4], 1e-4) + z(totals[4:], 1e-4),
        # b has no spread in the second group.
        "fixed": [2 * a + b for a, b in zip(left, right, strict=True)] + [2 * a for a in z(A[4:], 1e-8)],
    }
    for preset, advantages in expected.items():
        method = make(preset=preset, rewards="a@2, b", reward=tables(a=A, b=B))
        collected = method.collect(batch(2), step=0)
        assert kept(collected).advantages.tolist() == pytest.approx(advantages, abs=1e-6)
        numbers = {name: value.item() for name, value in collected.metrics.items()}
        assert numbers["reward"] == pytest.approx(mean(totals), rel=1e-6), "in the rewards' own units"
    assert (numbers["flat/a"], numbers["flat/b"], numbers["flat_groups"]) == (0.0, 0.5, 0.0)
    assert numbers["reward/a"] == pytest.approx(mean(A), rel=1e-6)
    assert numbers["reward_std/b"] == pytest.approx(stdev(B[:4]) / 2, rel=1e-6)


@pytest.mark.parametrize("preset", ["fixed", "faithful"])
def test_a_failed_score_is_ignored_in_its_group(preset: str) -> None:
    values = [1.0, NAN, 4.0, 5.0, 0.1, 0.2, 0.3, 0.9]
    model = backbone()
    method = make(model, preset=preset, rewards="a", reward=tables(a=values), kl_weight=0.0)
    collected = method.collect(batch(2), step=0)
    experience = kept(collected)
    epsilon = 1e-8 if preset == "fixed" else 1e-4
    three = z([1.0, 4.0, 5.0], epsilon)
    expected = [three[0], 0.0, *three[1:], *z(values[4:], epsilon)]
    assert experience.advantages.tolist() == pytest.approx(expected, abs=1e-6)
    assert experience.valid.tolist() == [True, False, *[True] * 6]
    numbers = {name: value.item() for name, value in collected.metrics.items()}
    assert numbers["invalid/a"] == 1 / 8
    assert numbers["invalid_groups"] == 0.0
    assert numbers["reward"] == numbers["reward/a"] == pytest.approx(11.5 / 7, rel=1e-6)
    assert method.loss(experience).value.isfinite()


@pytest.mark.parametrize("preset", ["fixed", "faithful"])
def test_a_group_without_valid_scores_contributes_nothing(preset: str) -> None:
    """Same gradient as from the other group alone, in the larger denominator; the KL too."""
    model = backbone(torch.float64)
    data = batch(2)
    options = {"preset": preset, "rewards": "a", "kl_weight": 0.7}
    method = make(model, reward=tables(a=[NAN] * 4 + A[:4]), **options)
    with torch.no_grad():
        unwrap(model.policy).output.weight.mul_(1.1)
    collected = method.collect(data, step=0)
    assert collected.metrics["invalid_groups"].item() == 0.5
    assert collected.metrics["flat_groups"].item() == 0.5
    alone = make(model, reward=tables(a=A[:4]), **options)
    alone.reference = method.reference
    other = alone.collect(data.select(slice(1, 2)), step=0)
    whole = output_gradient(model, method.loss(collected.experience))
    half = output_gradient(model, alone.loss(other.experience))
    assert half.abs().max().item() > 1e-4
    assert gap(whole, half / 2) < 1e-9


def test_a_batch_without_any_score_has_zero_gradient_and_says_so() -> None:
    model = backbone()
    method = make(model, rewards="a", reward=tables(a=[NAN] * 8))
    collected = method.collect(batch(2), step=0)
    assert collected.metrics["reward/a"].isnan() and collected.metrics["reward"].isnan()
    assert collected.metrics["invalid_groups"].item() == 1.0
    full = make(model).collect(batch(2), step=0)
    assert {name.replace("/a", "/bright") for name in collected.metrics} == full.metrics.keys()
    loss = method.loss(collected.experience)
    assert loss.value.item() == 0.0
    assert output_gradient(model, loss).abs().max().item() == 0.0


def test_rewards_see_decoded_images_with_their_labels_and_groups() -> None:
    model, data = backbone(), batch()
    stub = Stub(brightness)
    collected = make(model, reward=lambda _: stub, decode_batch=5).collect(data, step=0)
    (request,) = stub.requests
    tokens = kept(collected).tokens
    expected = (model.tokenizer.decode(tokens, (4, 4)) + 1) / 2
    assert gap(request.images, expected) < 1e-5
    assert request.labels is not None and request.labels.tolist() == [0] * 4 + [3] * 4 + [6] * 4
    assert request.group.tolist() == [100] * 4 + [101] * 4 + [102] * 4
    assert request.texts == () and request.reference is None
    assert collected.metrics["reward"].item() == pytest.approx(expected.mean().item(), abs=1e-5)


def test_a_card_used_twice_is_called_twice_and_logged_apart() -> None:
    both = "bright|scale(5), top, bright|levels(-1,0,1)"
    method = make(rewards=both, reward=lambda spec: rewards(spec.split("|")[0]))
    collected = method.collect(batch(), step=0)
    assert (collected.images, collected.sequences, collected.tokens) == (3, 12, 192)
    assert collected.reward_calls == {"bright": 24, "top": 12}
    logged = {name for name in collected.metrics if name.startswith("reward/")}
    assert logged == {"reward/bright|scale(5)", "reward/top", "reward/bright|levels(-1,0,1)"}


def test_statistics_by_hand() -> None:
    values = torch.tensor([[1.0, 2.0, 6.0], [5.0, NAN, NAN], [4.0, 4.0, NAN]])
    centre, std, flat = (number.item() for number in describe(values, ~values.isnan()))
    assert centre == pytest.approx(22 / 6)
    assert std == pytest.approx((7**0.5 + 0.0) / 2)
    assert flat == pytest.approx(2 / 3)


def test_samples_depend_on_seed_step_and_sample_number() -> None:
    model = backbone()
    tokens = [
        kept(make(model, seed=seed).collect(batch(), step)).tokens for seed, step in ((0, 0), (0, 1), (1, 0))
    ]
    assert not torch.equal(tokens[0], tokens[1]) and not torch.equal(tokens[0], tokens[2])
    assert len({tuple(row) for row in tokens[0][:GROUP].tolist()}) == GROUP


def test_training_raises_the_reward() -> None:
    model = backbone()
    method = make(model, group_size=8, kl_weight=0.0)
    optimizer = torch.optim.AdamW(model.policy.parameters(), lr=1e-3)
    seen = []
    for step in range(12):
        collected = method.collect(batch(8), step)
        seen.append(collected.metrics["reward"].item())
        method.loss(collected.experience).value.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert sum(seen[-3:]) / 3 > sum(seen[:3]) / 3 + 0.02


# --- misuse and recipes ---------------------------------------------------------------------------


def test_fixed_with_guidance_needs_a_backbone_that_can_score_it() -> None:
    names = ("tokenizer", "policy", "num_tokens", "grid", "image_size", "logits", "generate", "reference")
    model = backbone()
    plain: Any = SimpleNamespace(**{name: getattr(model, name) for name in names})
    with pytest.raises(UserError, match=r"method\.preset=fixed"):
        make(plain, cfg_scale=2.0)
    for changes in ({}, {"preset": "faithful", "cfg_scale": 2.0}):
        method = make(plain, **changes)
        assert method.loss(method.collect(batch(), 0).experience).value.isfinite()


RECIPES = {
    name: recipe
    for name in REGISTRY.names("recipes")
    if (recipe := REGISTRY.recipe(name)).method == "ar-grpo" and not name.startswith("loo-fd")
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_name_rewards_that_exist(name: str) -> None:
    terms = parse_terms(str(RECIPES[name].values["method.rewards"]))
    for spec, weight in terms:
        resolved = resolve(spec, REGISTRY)
        transforms.check(resolved.spec.transforms)
        assert resolved.card.scope == "image" and weight == 1.0
    published = name.startswith("ar-grpo-") and not name.endswith("-tiny")
    assert len(terms) == (7 if published else 1)
    written = str(RECIPES[name].values.get("method.token_weights", ""))
    assert not written or parse(written)


def test_large_recipes_hold_the_published_settings() -> None:
    """Numbers of the released scripts, written out once more."""
    common = {"preset": "faithful", "group_size": 8, "clip_range": 0.2, "temperature": 1.0, "top_k": 0}
    class_run = {"kl_weight": 0.1, "cfg_scale": 2.0, "steps": 400, "images_per_step": 4, "lr": 1e-5}
    text_run = {"kl_weight": 1.0, "cfg_scale": 4.0, "steps": 600, "images_per_step": 8, "lr": 1e-5}
    for name, own in {"llamagen-xl": class_run, "llamagen-xl-t2i": text_run}.items():
        values = {key.split(".")[1]: value for key, value in RECIPES[f"ar-grpo-{name}"].values.items()}
        expected = {**common, **own, "weight_decay": 0.0, "grad_clip": 1.0, "schedule": "constant"}
        assert {key: values[key] for key in expected} == expected


def test_the_published_map_of_a_cosine() -> None:
    spec = parse_terms(str(RECIPES["ar-grpo-llamagen-xl"].values["method.rewards"]))[1][0]
    chain = resolve(spec, REGISTRY).spec.transforms
    cosines = torch.tensor([-0.1, 0.0, 0.29, 0.3, 0.59, 0.6, 0.99])
    assert transforms.apply(chain, cosines).tolist() == [-1.0, 0.5, 0.5, 1.0, 1.0, 1.5, 1.5]
