"""What a golden VA-π file should hold: one function for each group of tensors, and how its cases are named.

All arithmetic is that of the functions training uses, in float64; nothing is implemented again here.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor
from torch.nn import functional as F

from alignbench.methods import policy_gradient
from alignbench.methods.image_rewards import weighted_reward
from alignbench.methods.policy_gradient import Draws, Objective
from alignbench.methods.ste import straight_through
from alignbench.nets.lpips import layer_distance, unit_features
from alignbench.rewards.pixel import PixelLoss, pixel_distance
from alignbench.verify.vapi_file import Results, Section, VapiFile


def _advantage(golden: VapiFile, case: re.Match[str]) -> Results:
    rewards = golden[case[0] + "rewards"].unflatten(0, (-1, int(case["group"])))
    advantage = policy_gradient.group_advantages(rewards).flatten()
    on_policy = torch.zeros(len(advantage), 1).double()
    clipped = -golden.surrogate(on_policy, on_policy, advantage).sequence_loss
    clip_name = f"advantage_clipped{golden.constant('advantage_clip'):g}_f64"
    return {"advantage_f64": advantage, clip_name: clipped}


def _policy(golden: VapiFile, case: re.Match[str]) -> Results:
    new = golden["policy/new_logp"].requires_grad_()
    old, advantage = golden["policy/old_logp"], golden["policy/advantage"]
    surrogate = golden.surrogate(new, old, advantage)
    loss = surrogate.sequence_loss.mean()
    masked = policy_gradient.token_mean(surrogate.token_loss, golden["policy/keep_mask_in"])
    return {
        "ratio_f64": surrogate.ratio,
        "per_token_loss_f64": surrogate.token_loss,
        "sequence_loss_f64": surrogate.sequence_loss,
        "loss_f64": loss,
        "grad_new_logp_f64": _gradient(loss, new),
        "clip_fraction_f64": surrogate.clip_fraction,
        "masked_sequence_loss_f64": masked,
        "masked_loss_f64": masked.mean(),
    }


def _kl(golden: VapiFile, case: re.Match[str]) -> Results:
    temperature = float(case["temperature"])
    current = golden["kl/current_logits"].requires_grad_()
    reference, tokens = golden["kl/reference_logits"], golden["kl/tokens"].unsqueeze(1)

    def estimate(tokens: Tensor) -> tuple[Tensor, Tensor]:
        logprobs = policy_gradient.token_logprobs(current, tokens, temperature)
        other = policy_gradient.token_logprobs(reference, tokens, temperature)
        return policy_gradient.kl_estimate(logprobs, other), logprobs

    per_token = estimate(tokens)[0].squeeze(1)
    # The estimate's expectation over all codes is the divergence itself.
    rows, length, num_codes = current.shape
    every_code, logprobs = estimate(torch.arange(num_codes).view(1, -1, 1).expand(rows, -1, length))
    return {
        "per_token_k3_f64": per_token,
        "mean_f64": per_token.mean(),
        "grad_current_logits_of_mean_f64": _gradient(per_token.mean(), current),
        "exact_kl_current_to_reference_f64": (logprobs.exp() * every_code).sum(dim=1),
    }


def _noise(golden: VapiFile, case: re.Match[str]) -> Results:
    prefix, flips = golden["noise/clean_tokens"][:, :-1], golden["noise/flip_mask"].bool()
    inclusive, offset = golden["noise/replacement_inclusive"], golden["noise/exclusion_offset"]
    num_codes = 2 + int(max(tensor.max() for tensor in (prefix, inclusive, offset)))  # any that holds them

    def corrupt(kernel: policy_gradient.NoiseKernel, code: Tensor, flips: Tensor) -> Tensor:
        choices = num_codes - 1 if kernel == "exclusive" else num_codes
        return policy_gradient.corrupt(
            prefix,
            0.5,
            kernel,
            num_codes=num_codes,
            flip_uniforms=torch.where(flips, 0.25, 0.75),
            replacement_uniforms=(code.double() + 0.5) / choices,
        )

    return {
        "noisy_prefix_inclusive": corrupt("inclusive", inclusive, flips),
        "replacement_exclusive": corrupt("exclusive", offset, torch.ones_like(flips)),
        "noisy_prefix_exclusive": corrupt("exclusive", offset, flips),
    }


def _toy_logits(golden: VapiFile, context: str) -> Tensor:
    """Logits of the bigram policy: row of the token (or class) before each position, plus its bias."""
    table, bias = golden.peek("ce/bigram_table"), golden.peek("ce/position_bias")
    clean = context == "clean"
    prefix = golden["noise/clean_tokens"][:, :-1] if clean else golden[f"noise/noisy_prefix_{context[6:]}"]
    start = golden["ce/class_ids"].unsqueeze(1) + bias.shape[1]
    logits: Tensor = (table[torch.cat([start, prefix], dim=1)] + bias).double()
    return logits


def _cross_entropy(golden: VapiFile, case: re.Match[str]) -> Results:
    targets = golden["noise/clean_tokens"]
    if case["tripwire"]:
        losses = [
            policy_gradient.prior_cross_entropy(_toy_logits(golden, context), targets).mean()
            for context in _CONTEXTS
        ]
        return {"": torch.stack(losses)}
    logits = _toy_logits(golden, case["context"]).requires_grad_()
    per_token = policy_gradient.prior_cross_entropy(logits, targets)
    loss = per_token.mean()
    return {"loss_f64": loss, "per_token_nll_f64": per_token, "grad_logits_f64": _gradient(loss, logits)}


def _logprob(golden: VapiFile, case: re.Match[str]) -> Results:
    tokens = golden[case[0] + "tokens"].unsqueeze(1)
    logits, temperature = golden["logprob/logits"], float(case["temperature"])
    logprobs = policy_gradient.token_logprobs(logits, tokens, temperature).squeeze(1)
    return {"token_logp_f64": logprobs, "sequence_logp_f64": logprobs.sum(dim=-1)}


def _objective_inputs(golden: VapiFile, case: re.Match[str]) -> Results:
    tokens = golden["objective/sampled_tokens"]
    rewards = golden["objective/rewards"].view(tokens.shape[:2])
    return {"advantage_f64": policy_gradient.group_advantages(rewards).flatten()}


def _objective(golden: VapiFile, case: re.Match[str]) -> Results:
    if case["case"] is None:
        return _objective_inputs(golden, case)
    tokens, beta = golden["objective/sampled_tokens"], float(case["beta"])
    logits = golden["objective/logits"].requires_grad_()
    old_logits = logits.detach() if case["case"] == "on" else golden["objective/old_logits_offpolicy"]
    old = policy_gradient.token_logprobs(old_logits, tokens, 1.0)
    advantage = _objective_inputs(golden, case)["advantage_f64"].view(tokens.shape[:2])
    objective = Objective(
        policy_weight=1.0,
        prior_weight=beta,
        clip_range=golden.constant("clip_range"),
        advantage_clip=golden.constant("advantage_clip"),
        temperature=1.0,
    )
    loss = objective(logits, golden["objective/target_tokens"], Draws(tokens, old, advantage))
    return {
        "policy_loss_f64": loss.metrics["policy_loss"],
        "prior_loss_f64": loss.metrics["prior_loss"],
        "total_loss_f64": loss.value,
        "grad_logits_f64": _gradient(loss.value, logits),
        "clip_fraction_f64": loss.metrics["clip_fraction"],
    }


def _straight_through(golden: VapiFile, case: re.Match[str]) -> Results:
    tau, logits = case["tau"], golden["ste/logits"].requires_grad_()
    rows = golden.peek("ste/codebook")
    codebook = (F.normalize(rows, dim=-1) if case["rows"] == "l2norm" else rows).double()
    noise = golden[f"ste/tau{tau}/gumbel_noise"] if case["estimator"] == "gumbel" else None
    embedding, indices = straight_through(logits, codebook, float(tau), gumbel_noise=noise)
    decoded = (embedding @ golden["ste/decoder_weight"] + golden["ste/decoder_bias"]).tanh()
    loss = F.mse_loss(decoded, golden["ste/target"])
    return {
        "indices": indices,
        "embedding_f64": embedding,
        "loss_f64": loss,
        "grad_logits_f64": _gradient(loss, logits),
    }


def _reward(golden: VapiFile, case: re.Match[str]) -> Results:
    images, reference = golden["reward/decoded_images"], golden["reward/reference_images"]
    loss: PixelLoss = "mse" if case["loss"] == "l2" else "l1"
    pixel = pixel_distance(images, reference, loss, repeats=len(images) // len(reference))
    parts = {"pixel": pixel, "perceptual": golden["reward/perceptual_distance"]}
    results = {
        "pixel_loss_f64": pixel,
        "reward_pixel_only_f64": weighted_reward({"pixel": pixel}, {"pixel": 1.0}),
    }
    combination = re.compile(rf"reward/l\d/(reward_pixel({_NUMBER})_perceptual({_NUMBER})_f64)")
    for match in filter(None, map(combination.fullmatch, golden.values)):
        weights = {"pixel": float(match[2]), "perceptual": float(match[3])}
        results[match[1]] = weighted_reward(parts, weights)
    return results


def _lpips(golden: VapiFile, case: re.Match[str]) -> Results:
    layers = {match[1] for match in map(re.compile(r"lpips/(layer\d+)/").match, golden.values) if match}
    shares = [
        layer_distance(
            unit_features(golden[f"lpips/{layer}/features_a"]),
            unit_features(golden[f"lpips/{layer}/features_b"]),
            golden[f"lpips/{layer}/channel_weights"],
        )
        for layer in sorted(layers)
    ]
    return {"distance_f64": torch.stack(shares).sum(dim=0)}


def _gradient(loss: Tensor, inputs: Tensor) -> Tensor:
    return torch.autograd.grad(loss, inputs, retain_graph=True)[0]


_NUMBER = r"\d+(?:\.\d+)?"
_CONTEXTS = ("clean", "noisy_inclusive", "noisy_exclusive")
_TRIPWIRE = "tripwire_shifted_alignment_loss_f64"
SECTIONS = {
    "advantage": Section(re.compile(r"advantage/g(?P<group>\d+)/"), _advantage),
    "policy": Section(re.compile(r"policy/"), _policy),
    "kl": Section(re.compile(rf"kl/temp(?P<temperature>{_NUMBER})/"), _kl),
    "noise": Section(re.compile(r"noise/"), _noise),
    "ce": Section(
        re.compile(rf"ce/(?:(?P<context>{'|'.join(_CONTEXTS)})/|(?P<tripwire>{_TRIPWIRE}))"),
        _cross_entropy,
        always=(*(f"ce/{context}/" for context in _CONTEXTS), f"ce/{_TRIPWIRE}"),
    ),
    "logprob": Section(re.compile(rf"logprob/temp(?P<temperature>{_NUMBER})/"), _logprob),
    "objective": Section(
        re.compile(rf"objective/(?:(?P<case>on|off)policy_beta(?P<beta>{_NUMBER})/)?"),
        _objective,
        always=("objective/",),
        grid="objective/{case}policy_beta{beta}/",
    ),
    "ste": Section(
        re.compile(rf"ste/tau(?P<tau>{_NUMBER})/(?P<estimator>argmax|gumbel)_(?P<rows>raw|l2norm)/"),
        _straight_through,
        grid="ste/tau{tau}/{estimator}_{rows}/",
    ),
    "reward": Section(re.compile(r"reward/(?P<loss>l1|l2)/"), _reward, always=("reward/l1/", "reward/l2/")),
    "lpips": Section(re.compile(r"lpips/"), _lpips),
}

INPUTS = re.compile(
    "|".join(
        f"{group}/(?:{names})"
        for group, names in {
            r"advantage/g\d+": "rewards",
            "policy": "new_logp|old_logp|advantage|keep_mask_in",
            "kl": "current_logits|reference_logits|tokens",
            "noise": "clean_tokens|flip_mask|replacement_inclusive|exclusion_offset",
            "ce": "bigram_table|position_bias|class_ids",
            "logprob": rf"logits|temp{_NUMBER}/tokens",
            "objective": "logits|old_logits_offpolicy|rewards|sampled_tokens|target_tokens",
            "ste": rf"codebook|logits|decoder_weight|decoder_bias|target|tau{_NUMBER}/gumbel_noise",
            "reward": "reference_images|decoded_images|perceptual_distance",
            r"lpips/layer\d+": "features_a|features_b|channel_weights",
        }.items()
    )
)
"""Tensors that results are computed from."""
