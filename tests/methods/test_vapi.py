"""VA-π on a toy generator small enough to write its objective out by hand."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from alignbench import api, randomness
from alignbench.errors import UserError
from alignbench.methods.logits import Experience
from alignbench.methods.ntp import NextToken
from alignbench.methods.policy_gradient import Draws, corrupt, group_advantages
from alignbench.methods.vapi import VaPi
from alignbench.registry.lookup import Registry, import_target
from alignbench.rewards.pixel import PixelDistance

REGISTRY = Registry.default()
CLASSES, CODES, TOKENS, WIDTH = 3, 7, 4, 8


class ToyPolicy(nn.Module):
    """A causal mean of embeddings, dropout, one hidden layer."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.start = nn.Embedding(CLASSES, WIDTH)
        self.token = nn.Embedding(CODES, WIDTH)
        self.place = nn.Parameter(torch.randn(TOKENS, WIDTH))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(WIDTH, CODES)

    def forward(self, condition: api.ClassLabels, context: Tensor) -> Tensor:
        inputs = torch.cat([self.start(condition.ids).unsqueeze(1), self.token(context)], dim=1)
        means = inputs.cumsum(1) / torch.arange(1, TOKENS + 1)[:, None]
        out: Tensor = self.head(self.dropout(torch.tanh(means + self.place)))
        return out


class ToyTokenizer:
    """2×2 patches of one colour; a patch's code is the nearest palette entry."""

    num_codes, code_dim, downsample = CODES, 3, 2

    def __init__(self) -> None:
        self.decoder = nn.Linear(3, 3).double()
        nn.init.eye_(self.decoder.weight)
        nn.init.zeros_(self.decoder.bias)
        self.palette = torch.linspace(-1.2, 1.2, CODES * 3, dtype=torch.float64).view(CODES, 3)
        self.decoded: list[int] = []

    def encode(self, images: Tensor) -> Tensor:
        patches = nn.functional.avg_pool2d(images, 2).flatten(2).transpose(1, 2)
        return torch.cdist(patches, self.palette).argmin(-1)

    def decode(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        self.decoded.append(len(tokens))
        return self.decode_embeddings(self.palette[tokens], grid)

    def codebook(self) -> Tensor:
        return self.palette

    def decode_embeddings(self, embeddings: Tensor, grid: tuple[int, int]) -> Tensor:
        pixels = self.decoder(embeddings).transpose(1, 2).unflatten(2, grid)
        return nn.functional.interpolate(pixels, scale_factor=2.0)


class ToyBackbone:
    """`api.Backbone` without free generation; counts its forwards."""

    num_tokens, grid, image_size = TOKENS, (2, 2), 4

    def __init__(self, *, dropout: float = 0.3, seed: int = 0) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.policy: nn.Module = ToyPolicy(dropout).double()
        self.tokenizer = ToyTokenizer()
        self.rows: list[int] = []

    def logits(self, condition: api.Condition, context: Tensor) -> Tensor:
        self.rows.append(len(context))
        out: Tensor = self.policy(condition, context)
        return out

    def reference(self) -> ToyBackbone:
        twin = ToyBackbone()
        twin.policy = copy.deepcopy(self.policy).requires_grad_(False)
        return twin


class CountingMSE(PixelDistance):
    """MSE that counts the references it prepares."""

    def __init__(self) -> None:
        super().__init__("mse")
        self.prepared = 0

    def prepare(self, reference: Tensor) -> Tensor:
        self.prepared += len(reference)
        return reference


def rewards(name: str) -> api.Reward:
    return PixelDistance("mse" if name == "pixel-mse" else "l1")


def built(
    method: str, backbone: Any, *, reward: Callable[[str], Any] = rewards, seed: int = 0, **changes: Any
) -> Any:
    """A method with its card's defaults but for some."""
    card = REGISTRY.method(method)
    defaults = {name: option.default for name, option in card.options.items()}
    target = import_target(card.target)
    steps = {"steps": 100} if method == "ntp" else {}
    return target(
        target.Config(**{**defaults, **changes}), backbone=backbone, reward=reward, seed=seed, **steps
    )


def make(backbone: ToyBackbone | None = None, **changes: Any) -> VaPi:
    method: VaPi = built("vapi", backbone or ToyBackbone(), **{"perceptual": "pixel-l1", **changes})
    return method


def kept(collected: api.Collected) -> Experience:
    assert isinstance(collected.experience, Experience)
    return collected.experience


def draws_of(collected: api.Collected) -> Draws:
    draws = kept(collected).draws
    assert draws is not None
    return draws


def batch(size: int = 3) -> api.Batch:
    numbers = torch.Generator().manual_seed(5)
    images = torch.rand(size, 3, 4, 4, generator=numbers, dtype=torch.float64) * 2 - 1
    return api.Batch(torch.arange(size) + 100, api.ClassLabels(torch.arange(size) % CLASSES), images)


def gradients(method: VaPi | NextToken, loss: api.Loss) -> Tensor:
    parameters = list(method.backbone.policy.parameters())
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss.value, parameters)])


# --- card -----------------------------------------------------------------------------------------


def test_card_defaults_are_those_of_the_paper() -> None:
    expected = {
        "group_size": 8, "clip_range": 0.2, "advantage_clip": 5.0, "temperature": 1.0, "fidelity": "exact",
        "prior": "ce", "prior_weight": 0.1, "noise": 0.0, "noise_kernel": "exclusive", "policy_weight": 1.0,
        "pixel_loss": "mse", "pixel_weight": 1.0, "perceptual": "lpips-vgg", "perceptual_weight": 1.0,
    }  # fmt: skip
    options = REGISTRY.method("vapi").options
    assert {name: options[name].default for name in expected} == expected


@pytest.mark.parametrize(
    ("changes", "culprit"),
    [
        ({"perceptual": "none"}, "method.perceptual "),
        ({"policy_weight": 0.0, "prior_weight": 0.0}, "method.policy_weight"),
        ({"policy_weight": 0.0, "prior": "kl"}, "method.policy_weight"),
        ({"pixel_weight": 0.0, "perceptual_weight": 0.0}, "method.pixel_weight"),
    ],
)
def test_settings_that_train_on_nothing_are_refused(changes: dict[str, Any], culprit: str) -> None:
    with pytest.raises(UserError, match=culprit):
        make(**changes)


# --- collect --------------------------------------------------------------------------------------


def test_collect_scores_the_decoded_samples_against_the_original_images() -> None:
    backbone, data = ToyBackbone(), batch()
    collected = make(backbone, perceptual_weight=0.5, pixel_weight=2.0).collect(data, step=0)
    assert (collected.images, collected.sequences, collected.tokens) == (3, 24, 0)
    assert collected.reward_calls == {"pixel-mse": 24, "pixel-l1": 24}
    assert backbone.rows == [3], "one forward row an image, whatever the group size"
    draws = draws_of(collected)
    scores = torch.empty(3, 8, dtype=torch.float64)
    pixel = perceptual = 0.0
    for image in range(3):
        for sample in range(8):
            decoded = backbone.tokenizer.decode(draws.tokens[image, sample][None], (2, 2))[0]
            mse = (decoded - data.images[image]).square().mean().item()
            l1 = (decoded - data.images[image]).abs().mean().item()
            scores[image, sample] = -(2.0 * mse + 0.5 * l1)
            pixel, perceptual = pixel + mse / 24, perceptual + l1 / 24
    assert (draws.advantages - group_advantages(scores)).abs().max().item() < 1e-12
    metrics = {name: value.item() for name, value in collected.metrics.items()}
    assert metrics["reward"] == pytest.approx(scores.mean().item(), abs=1e-12)
    assert metrics["reward_std"] == pytest.approx(scores.std(dim=1).mean().item(), abs=1e-12)
    assert metrics["pixel"] == pytest.approx(pixel, abs=1e-12)
    assert metrics["perceptual"] == pytest.approx(perceptual, abs=1e-12)
    assert metrics["flat_groups"] == 0.0


def test_old_logprobs_and_entropy_are_those_of_the_sampling_distribution() -> None:
    backbone = ToyBackbone()
    collected = make(backbone, temperature=0.7).collect(batch(), step=0)
    experience, draws = kept(collected), draws_of(collected)
    backbone.policy.eval()
    table = (backbone.logits(experience.condition, experience.context) / 0.7).log_softmax(-1)
    expected = table[:, None].expand(-1, 8, -1, -1).gather(-1, draws.tokens[..., None])[..., 0]
    assert (draws.logprobs - expected).abs().max().item() < 1e-12
    entropy = -(table.exp() * table).sum(-1).mean().item()
    assert collected.metrics["entropy"].item() == pytest.approx(entropy, abs=1e-12)


def test_samples_follow_the_policy() -> None:
    backbone = ToyBackbone()
    collected = make(backbone, group_size=4000).collect(batch(1), step=0)
    experience = kept(collected)
    backbone.policy.eval()
    expected = backbone.logits(experience.condition, experience.context).softmax(-1)[0]
    tokens = draws_of(collected).tokens[0]
    for place in range(TOKENS):
        share = tokens[:, place].bincount(minlength=CODES) / 4000
        assert (share - expected[place]).abs().max().item() < 0.035


def test_noise_and_samples_depend_on_seed_and_step() -> None:
    tokens = [
        draws_of(make(seed=seed, noise=0.5).collect(batch(), step=step)).tokens
        for seed, step in ((0, 0), (0, 1), (1, 0))
    ]
    assert not torch.equal(tokens[0], tokens[1]) and not torch.equal(tokens[0], tokens[2])


@pytest.mark.parametrize("decode_batch", [1, 3, 8, 20, 100])
def test_decode_batch_bounds_the_decoder_and_changes_nothing(decode_batch: int) -> None:
    backbone, counting = ToyBackbone(), CountingMSE()
    method = make(
        backbone,
        decode_batch=decode_batch,
        perceptual="mse",
        reward=lambda name: counting if name == "mse" else rewards(name),
    )
    collected = method.collect(batch(), step=0)
    assert sum(backbone.tokenizer.decoded) == 24
    assert max(backbone.tokenizer.decoded) <= decode_batch
    assert counting.prepared == 3  # once an image, not once a sample
    expected = draws_of(make(pixel_weight=2.0, perceptual_weight=0.0).collect(batch(), step=0))
    assert torch.allclose(draws_of(collected).advantages, expected.advantages, rtol=0, atol=1e-9)


def test_parts_of_weight_zero_are_neither_loaded_nor_logged() -> None:
    asked: list[str] = []
    collected = make(
        reward=lambda name: asked.append(name) or rewards(name),  # type: ignore[func-returns-value]
        perceptual="none", perceptual_weight=0.0, pixel_loss="l1",
    ).collect(batch(), step=0)  # fmt: skip
    assert asked == ["pixel-l1"]
    assert "perceptual" not in collected.metrics


def test_groups_without_spread_are_counted_and_pull_nowhere() -> None:
    backbone = ToyBackbone()
    backbone.tokenizer.palette[:] = 0.25  # every sample decodes to the same picture
    method = make(backbone, prior_weight=0.0)
    collected = method.collect(batch(), step=0)
    assert collected.metrics["flat_groups"].item() == 1.0
    assert torch.equal(draws_of(collected).advantages, torch.zeros(3, 8, dtype=torch.float64))
    assert torch.count_nonzero(gradients(method, method.loss(collected.experience))) == 0


# --- loss -----------------------------------------------------------------------------------------


def per_sample_loss(method: VaPi, experience: Experience) -> Tensor:
    """The objective as the released program computes it, without dropout: one forward row for each sample."""
    config, draws = method.config, experience.draws
    assert draws is not None
    method.backbone.policy.eval()
    terms = []
    for image in range(len(experience.index)):
        condition = experience.condition.select(slice(image, image + 1)).repeat(config.group_size)
        context = experience.context[image].expand(config.group_size, -1)
        logits = method.backbone.logits(condition, context)
        for sample in range(config.group_size):
            advantage = draws.advantages[image, sample].clamp(-config.advantage_clip, config.advantage_clip)
            for place in range(TOKENS):
                now = (logits[sample, place] / config.temperature).log_softmax(-1)
                token = draws.tokens[image, sample, place]
                ratio = (now[token] - draws.logprobs[image, sample, place]).exp()
                clipped = ratio.clamp(1 - config.clip_range, 1 + config.clip_range)
                policy = torch.maximum(-ratio * advantage, -clipped * advantage)
                prior = -logits[sample, place].log_softmax(-1)[experience.targets[image, place]]
                terms.append(config.policy_weight * policy + config.prior_weight * prior)
    return torch.stack(terms).mean()


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.8])
def test_one_shared_forward_has_the_gradient_of_the_per_sample_form(moved: bool, temperature: float) -> None:
    method = make(noise=0.3, temperature=temperature, policy_weight=0.7)
    experience = kept(method.collect(batch(), step=2))
    if moved:  # off-policy, so that some tokens are clipped
        with torch.no_grad():
            for part in method.backbone.policy.parameters():
                part.add_(0.2 * torch.randn(part.shape, generator=torch.Generator().manual_seed(1)))
    loss = method.loss(experience)
    assert (loss.metrics["clip_fraction"] > 0) == moved
    expected = per_sample_loss(method, experience)
    assert (loss.value - expected).abs().item() < 1e-12
    shared = gradients(method, loss)
    assert (shared - gradients(method, api.Loss(expected))).abs().max().item() < 1e-10
    assert shared.abs().max().item() > 1e-3


def test_official_without_dropout_equals_exact() -> None:
    results = []
    for fidelity in ("exact", "official"):
        method = make(ToyBackbone(dropout=0.0), fidelity=fidelity, noise=0.3)
        loss = method.loss(method.collect(batch(), step=0).experience)
        results.append((loss.value, gradients(method, loss), method.backbone))
    (exact, gradient, shared), (official, other, repeated) = results
    assert (exact - official).abs().item() < 1e-12
    assert (gradient - other).abs().max().item() < 1e-10
    assert isinstance(shared, ToyBackbone) and isinstance(repeated, ToyBackbone)
    assert shared.rows == [3, 3]
    assert repeated.rows == [3, 8, 8, 8]


def test_exact_mode_has_ratio_one_although_the_policy_has_dropout() -> None:
    method = make(ToyBackbone(dropout=0.5))
    method.backbone.policy.train()
    metrics = method.loss(method.collect(batch(), step=0).experience).metrics
    assert metrics["ratio_deviation"].item() < 1e-12
    assert metrics["clip_fraction"].item() == 0.0
    assert abs(metrics["policy_loss"].item()) < 1e-12  # advantages of a group sum to zero


def test_official_mode_scatters_ratios_reproducibly() -> None:
    method = make(ToyBackbone(dropout=0.3), fidelity="official")
    data = batch()
    collected = method.collect(data, step=0)
    first, again = method.loss(collected.experience), method.loss(collected.experience)
    assert first.metrics["ratio_deviation"].item() > 0.05
    assert 0.0 < first.metrics["clip_fraction"].item() < 1.0
    assert torch.equal(first.value, again.value)
    assert torch.equal(gradients(method, first), gradients(method, again))
    elsewhere = method.loss(dataclasses.replace(kept(collected), step=1))
    assert elsewhere.value.item() != first.value.item()


def test_official_dropout_does_not_depend_on_micro_batches_or_global_randomness() -> None:
    method, data = make(ToyBackbone(dropout=0.3), fidelity="official"), batch()
    whole = method.loss(method.collect(data, step=0).experience).value
    torch.manual_seed(12345)
    state = torch.get_rng_state()
    parts = [method.loss(method.collect(part, step=0).experience).value for part in data.split(1)]
    assert torch.equal(torch.get_rng_state(), state)
    assert (whole - torch.stack(parts).mean()).abs().item() < 1e-12


def test_official_dropout_differs_between_samples_of_an_image() -> None:
    method = make(ToyBackbone(dropout=0.3), fidelity="official")
    experience = method.collect(batch(1), step=0).experience
    seen: list[Tensor] = []
    hook = method.backbone.policy.register_forward_hook(lambda module, inputs, output: seen.append(output))
    method.loss(experience)
    hook.remove()
    assert len(seen) == 1 and seen[0].shape[0] == 8
    assert len({tuple(row.flatten().tolist()) for row in seen[0].detach()}) == 8


@pytest.mark.parametrize("fidelity", ["exact", "official"])
@pytest.mark.parametrize("training", [True, False])
def test_train_and_eval_modes_are_put_back(fidelity: str, training: bool) -> None:
    method = make(fidelity=fidelity, prior="kl")
    policy = method.backbone.policy.train(training)
    policy.get_submodule("head").train(not training)
    method.loss(method.collect(batch(), step=0).experience)
    modes = {name: part.training for name, part in policy.named_modules()}
    assert modes.pop("head") is not training
    assert set(modes.values()) == {training}


def test_modes_are_put_back_after_an_error() -> None:
    method = make()
    method.backbone.policy.train()
    with pytest.raises(IndexError):
        method.collect(dataclasses.replace(batch(), condition=api.ClassLabels(torch.full((3,), 99))), step=0)
    assert method.backbone.policy.training


def test_prior_alone_samples_decodes_and_scores_nothing() -> None:
    def refuse(name: str) -> api.Reward:
        raise AssertionError(name)

    backbone = ToyBackbone()
    method = make(backbone, policy_weight=0.0, prior_weight=0.5, reward=refuse)
    collected = method.collect(batch(), step=0)
    assert backbone.rows == [] and backbone.tokenizer.decoded == []
    assert (collected.images, collected.sequences, collected.reward_calls) == (3, 0, {})
    loss = method.loss(collected.experience)
    experience = kept(collected)
    backbone.policy.eval()
    logits = backbone.logits(experience.condition, experience.context)
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), experience.targets.flatten())
    assert loss.value.item() == pytest.approx(0.5 * expected.item(), abs=1e-12)
    assert loss.metrics.keys() == {"prior_loss"}


def test_kl_prior_replaces_cross_entropy_and_measures_from_the_starting_policy() -> None:
    method = make(prior="kl", prior_weight=2.0, policy_weight=1e-9, temperature=0.8, noise=0.5)
    start = copy.deepcopy(method.backbone.policy).eval()
    at_start = method.loss(method.collect(batch(), step=0).experience)
    assert "prior_loss" not in at_start.metrics
    assert at_start.metrics["kl"].item() == 0.0
    with torch.no_grad():
        method.backbone.policy.get_parameter("head.weight").mul_(1.5)
    collected = method.collect(batch(), step=0)
    experience, draws = kept(collected), draws_of(collected)
    loss = method.loss(experience)
    method.backbone.policy.eval()
    arguments = (experience.condition, experience.context)
    logs = [
        (policy(*arguments) / 0.8).log_softmax(-1)[:, None].expand(-1, 8, -1, -1)
        for policy in (method.backbone.policy, start)
    ]
    now, then = (table.gather(-1, draws.tokens[..., None])[..., 0] for table in logs)
    expected = ((then - now).exp() - (then - now) - 1).mean().item()
    assert expected > 1e-3
    assert loss.metrics["kl"].item() == pytest.approx(expected, abs=1e-12)
    assert loss.value.item() == pytest.approx(2.0 * expected, abs=1e-6)


def test_noise_of_the_method_is_that_of_the_shared_function() -> None:
    experience = kept(make(noise=0.6, noise_kernel="inclusive", seed=3).collect(batch(), step=7))
    numbers = torch.from_numpy(randomness.uniforms(3, "vapi-noise", 7, experience.index, (2, TOKENS - 1)))
    flips = {"flip_uniforms": numbers[:, 0], "replacement_uniforms": numbers[:, 1]}
    expected = corrupt(experience.targets[:, :-1], 0.6, "inclusive", num_codes=CODES, **flips)
    assert torch.equal(experience.context, expected)
