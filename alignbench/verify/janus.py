"""Check the Janus backbone against golden numbers made by the official modules, one prompt at a time.

A set is a model folder in the hub's form (any size) with `meta.json`, `inputs.safetensors` and
`expected.safetensors`. Guidance scales are read from tensor names; tolerances are those that such sets come
with: logits 1e-3, pixels 1e-4, 8-bit pixels 1, gradients 1e-3 of their maximum, ids exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from alignbench.api import Sampling
from alignbench.backbones.base import unwrap
from alignbench.backbones.generate import generate_steps
from alignbench.backbones.janus.model import Janus, load
from alignbench.backbones.janus.policy import JanusPolicy
from alignbench.backbones.janus.prompts import PromptTokens, template
from alignbench.samples.pixels import to_uint8
from alignbench.verify.golden_files import GoldenFile
from alignbench.verify.report import CheckReport, Tolerance, read_object

META = "meta.json"
INPUTS = "inputs.safetensors"
EXPECTED = "expected.safetensors"
LOGITS = Tolerance(absolute=1e-3)
PIXELS = Tolerance(absolute=1e-4)
BYTES = Tolerance(absolute=1.0)
GRADIENTS = Tolerance(relative=1e-3)


@dataclass(frozen=True)
class _Set:
    """A golden set with its model."""

    model: Janus
    meta: dict[str, Any]
    inputs: GoldenFile
    expected: GoldenFile
    report: CheckReport

    @property
    def policy(self) -> JanusPolicy:
        result: JanusPolicy = unwrap(self.model.policy)
        return result

    def prompts(self) -> PromptTokens:
        ids, mask = self.inputs.input("prompt_ids"), self.inputs.input("prompt_mask")
        return PromptTokens(ids.long(), mask.bool())


def check(folder: Path) -> CheckReport:
    """Compare everything in a golden Janus folder.

    A part that cannot be computed is a row that is not ok; the other parts are still checked.
    """
    report = CheckReport()
    with report.part(folder.name):
        golden = _Set(
            load(folder, device=torch.get_default_device()),
            read_object(folder / META),
            GoldenFile(folder / INPUTS, report),
            GoldenFile(folder / EXPECTED, report),
            report,
        )
        for part in (_check_text, _check_tokenizer, _check_gradients, _check_forcing, _check_generation):
            with report.part(part.__name__.removeprefix("_check_")):
                part(golden)
        golden.inputs.finish()
        golden.expected.finish()
    return report


def _check_text(golden: _Set) -> None:
    """Template, token ids, padding and mask of the prompts; and what their unconditional twins are."""
    texts = golden.meta["prompt_texts"]
    for text, formatted in zip(texts, golden.meta["formatted_prompts"], strict=True):
        golden.report.same_text(f"{META}:{text!r}", template(text), formatted)
    prompts = golden.model.text_condition(texts)
    golden.inputs.compare("prompt_ids", prompts.ids)
    golden.inputs.compare("prompt_mask", prompts.mask)
    golden.inputs.compare("uncond_prompt_ids", golden.policy.null(prompts).ids)


def _check_tokenizer(golden: _Set) -> None:
    expected, tokenizer, grid = golden.expected, golden.model.tokenizer, golden.model.grid
    images = golden.inputs.input("image")
    golden.inputs.compare("image_u8", (images + 1) * 127.5, PIXELS)
    with torch.no_grad():
        latent = tokenizer.latent(images)
        vectors, tokens = tokenizer.quantise(latent)
        expected.compare("vq_latent", latent, PIXELS)
        expected.compare("vq_ids", tokens)
        expected.compare("vq_code_vectors", vectors, PIXELS)
        right = expected.peek("vq_ids").long()
        expected.compare("recon_pixels", tokenizer.decode(right, grid), PIXELS)
        decoded = tokenizer.decode(expected.peek("greedy_ids_cfg5").long(), grid)
        expected.compare("decoded_pixels", decoded, PIXELS)
        expected.compare("decoded_u8", to_uint8(decoded, "truncate-255").permute(0, 2, 3, 1), BYTES)
    # Codes of a quantiser that compares lengths too: ours must not be those, where these differ.
    name = "vq_ids_unnormalised"
    wrong = expected.peek(name).long()
    expected.info(name, "known to be wrong")
    if wrong.shape == tokens.shape and not torch.equal(wrong, right):
        note = "must differ from the unnormalised codes"
        golden.report.judge(f"{EXPECTED}:{name} (tripwire)", float(torch.equal(tokens, wrong)), note=note)
    drawn, changed = golden.inputs.input("corrupt_mask").bool(), golden.inputs.input("corrupted_ids").long()
    kept = changed.masked_fill(drawn, -1), right.masked_fill(drawn, -1)
    golden.report.compare(f"{INPUTS}:corrupted_ids (kept)", *kept)


def _check_gradients(golden: _Set) -> None:
    """Of the mean squared error of decoded images: with respect to code vectors, and straight through."""
    tokenizer, images = golden.model.tokenizer, golden.inputs.input("image")

    def gradient(source: Tensor, vectors: Tensor) -> Tensor:
        decoded = tokenizer.decode_embeddings(vectors.flatten(2).transpose(1, 2), golden.model.grid)
        return torch.autograd.grad(F.mse_loss(decoded, images), source)[0]

    latent = tokenizer.latent(images).detach().requires_grad_()
    straight, _ = tokenizer.quantise(latent)
    codes = straight.detach().requires_grad_()
    golden.expected.compare("recon_mse_grad_code_vectors", gradient(codes, codes), GRADIENTS)
    golden.expected.compare("ste_grad_vq_latent", gradient(latent, straight), GRADIENTS)


@torch.no_grad()
def _check_forcing(golden: _Set) -> None:
    """Logits with the true and with a corrupted context, unguided and guided."""
    expected, prompts = golden.expected, golden.prompts()
    clean = expected.peek("vq_ids").long()
    contexts = {"clean": clean, "corrupt": golden.inputs.input("corrupted_ids").long()}
    for context, tokens in contexts.items():
        logits = golden.policy(prompts, tokens[:, :-1])
        null = golden.policy(golden.policy.null(prompts), tokens[:, :-1])
        results = {f"tf_logits_cond_{context}": logits, f"tf_logits_uncond_{context}": null}
        for match in expected.matching(rf"tf_logits_cfg(\d+)_{context}", at_least=1):
            results[match.string] = null + float(match[1]) * (logits - null)
        logprobs = logits.log_softmax(dim=-1).gather(-1, clean[..., None])[..., 0]
        results[f"tf_logp_clean_targets_cond_{context}"] = logprobs
        expected.compare_all(results, LOGITS)


def _check_generation(golden: _Set) -> None:
    """Free-running generation, always the most likely code, with the cache."""
    expected, prompts = golden.expected, golden.prompts()
    for match in expected.matching(r"greedy_ids_cfg(\d+)", at_least=1):
        sampling = Sampling(greedy=True, cfg_scale=float(match[1]))
        numbers = torch.zeros(len(prompts), expected.peek(match.string).shape[1])
        trace = generate_steps(golden.policy, prompts, numbers, sampling, keep_logits=True)
        assert trace.logits is not None
        expected.compare(match.string, trace.tokens)
        expected.compare(f"greedy_step_logits_cfg{match[1]}", trace.logits, LOGITS)
