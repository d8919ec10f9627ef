"""Check the Janus backbone against golden numbers made by the official modules, one prompt at a time.

A set is a model folder in the hub's form (any size) with `meta.json`, `inputs.safetensors` and
`expected.safetensors`. Guidance scales are read from tensor names; tolerances are those that such sets come
with: logits 1e-3, pixels 1e-4, 8-bit pixels 1, gradients 1e-3 of their maximum, ids exact.
"""

from __future__ import annotations

import json
from collections.abc import Callable
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
from alignbench.errors import UserError
from alignbench.samples.pixels import to_uint8
from alignbench.verify.golden_files import GoldenFile, MissingTensor
from alignbench.verify.report import Check, CheckReport

META = "meta.json"
INPUTS = "inputs.safetensors"
EXPECTED = "expected.safetensors"
LOGITS = 1e-3
PIXELS = 1e-4
BYTES = 1.0
GRADIENTS = 1e-3
"""Relative to the largest."""


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

    def codes(self, name: str) -> Tensor:
        """Codes of an expected tensor, without marking it as checked."""
        self.expected.shape(name)
        return self.expected.peek(name).long()


def check(folder: Path) -> CheckReport:
    """Compare everything in a golden Janus folder.

    A part that cannot be computed is a row that is not ok; the other parts are still checked.
    """
    report = CheckReport()
    try:
        golden = _Set(
            load(folder, device=torch.get_default_device()),
            _read_meta(folder),
            GoldenFile(folder / INPUTS, report),
            GoldenFile(folder / EXPECTED, report),
            report,
        )
    except UserError as error:
        report.checks.append(Check(folder.name, None, None, "MISS", str(error)))
        return report
    for part in (_check_text, _check_tokenizer, _check_gradients, _check_forcing, _check_generation):
        _run(part, golden)
    golden.inputs.finish()
    golden.expected.finish()
    return report


def _run(part: Callable[[_Set], None], golden: _Set) -> None:
    """Run one part; what stops it becomes a row."""
    try:
        part(golden)
    except MissingTensor:
        return  # the report has a row for it
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        note = f"cannot be computed: {type(error).__name__}: {str(error).splitlines()[0]}"
        golden.report.checks.append(Check(part.__name__.removeprefix("_check_"), None, None, "MISS", note))


def _read_meta(folder: Path) -> dict[str, Any]:
    path = folder / META
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error})", fix="get the golden set again") from error
    if not isinstance(meta, dict):
        raise UserError(f"{path} is not a JSON object", fix="get the golden set again")
    return meta


def _check_text(golden: _Set) -> None:
    """Template, token ids, padding and mask of the prompts; and what their unconditional twins are."""
    texts = golden.meta["prompt_texts"]
    for text, formatted in zip(texts, golden.meta["formatted_prompts"], strict=True):
        same = template(text) == formatted
        note = "" if same else f"{template(text)!r} instead of {formatted!r}"
        golden.report.checks.append(
            Check(f"{META}:{text!r}", float(not same), 0.0, "ok" if same else "MISS", note)
        )
    prompts = golden.model.text_condition(texts)
    golden.inputs.equal("prompt_ids", prompts.ids)
    golden.inputs.equal("prompt_mask", prompts.mask)
    golden.inputs.equal("uncond_prompt_ids", golden.policy.null(prompts).ids)


def _check_tokenizer(golden: _Set) -> None:
    expected, tokenizer, grid = golden.expected, golden.model.tokenizer, golden.model.grid
    images = golden.inputs.input("image")
    golden.inputs.within("image_u8", (images + 1) * 127.5, absolute=PIXELS)
    with torch.no_grad():
        latent = tokenizer.latent(images)
        expected.within("vq_latent", latent, absolute=PIXELS)
        vectors, tokens = tokenizer.quantise(latent)
        expected.equal("vq_ids", tokens)
        expected.within("vq_code_vectors", vectors, absolute=PIXELS)
        expected.within("recon_pixels", tokenizer.decode(golden.codes("vq_ids"), grid), absolute=PIXELS)
        decoded = tokenizer.decode(golden.codes("greedy_ids_cfg5"), grid)
        expected.within("decoded_pixels", decoded, absolute=PIXELS)
        pixels = to_uint8(decoded, "truncate-255").permute(0, 2, 3, 1)
        expected.within("decoded_u8", pixels, absolute=BYTES)
    _check_tripwire(golden, tokens)
    drawn, changed = golden.inputs.input("corrupt_mask").bool(), golden.inputs.input("corrupted_ids")
    kept = golden.codes("vq_ids").masked_fill(drawn, -1)
    golden.report.equal(f"{INPUTS}:corrupted_ids (kept)", changed.long().masked_fill(drawn, -1), kept)


def _check_tripwire(golden: _Set, tokens: Tensor) -> None:
    """Our codes must not be those of a quantiser that compares lengths too, where these differ."""
    name = "vq_ids_unnormalised"
    wrong, right = golden.codes(name), golden.codes("vq_ids")
    golden.expected.info(name, "known to be wrong")
    if wrong.shape == tokens.shape and not torch.equal(wrong, right):
        same = torch.equal(tokens, wrong)
        note = "must differ from the unnormalised codes"
        golden.report.checks.append(
            Check(f"{EXPECTED}:{name} (tripwire)", float(same), 0.0, "MISS" if same else "ok", note)
        )


def _check_gradients(golden: _Set) -> None:
    """Of the mean squared error of decoded images: with respect to code vectors, and straight through."""
    tokenizer, images = golden.model.tokenizer, golden.inputs.input("image")

    def gradient(source: Tensor, vectors: Tensor) -> Tensor:
        decoded = tokenizer.decode_embeddings(vectors.flatten(2).transpose(1, 2), golden.model.grid)
        return torch.autograd.grad(F.mse_loss(decoded, images), source)[0]

    latent = tokenizer.latent(images).detach().requires_grad_()
    straight, _ = tokenizer.quantise(latent)
    codes = straight.detach().requires_grad_()
    golden.expected.within("recon_mse_grad_code_vectors", gradient(codes, codes), relative=GRADIENTS)
    golden.expected.within("ste_grad_vq_latent", gradient(latent, straight), relative=GRADIENTS)


@torch.no_grad()
def _check_forcing(golden: _Set) -> None:
    """Logits with the true and with a corrupted context, unguided and guided."""
    expected, prompts = golden.expected, golden.prompts()
    clean = golden.codes("vq_ids")
    contexts = {"clean": clean, "corrupt": golden.inputs.input("corrupted_ids").long()}
    for context, tokens in contexts.items():
        logits = golden.policy(prompts, tokens[:, :-1])
        null = golden.policy(golden.policy.null(prompts), tokens[:, :-1])
        expected.within(f"tf_logits_cond_{context}", logits, absolute=LOGITS)
        expected.within(f"tf_logits_uncond_{context}", null, absolute=LOGITS)
        for match in expected.matching(rf"tf_logits_cfg(\d+)_{context}", at_least=1):
            guided = null + float(match[1]) * (logits - null)
            expected.within(match.string, guided, absolute=LOGITS)
        logprobs = logits.log_softmax(dim=-1).gather(-1, clean[..., None])[..., 0]
        expected.within(f"tf_logp_clean_targets_cond_{context}", logprobs, absolute=LOGITS)


def _check_generation(golden: _Set) -> None:
    """Free-running generation, always the most likely code, with the cache."""
    expected, prompts = golden.expected, golden.prompts()
    for match in expected.matching(r"greedy_ids_cfg(\d+)", at_least=1):
        sampling = Sampling(greedy=True, cfg_scale=float(match[1]))
        numbers = torch.zeros(len(prompts), expected.shape(match.string)[1])
        trace = generate_steps(golden.policy, prompts, numbers, sampling, keep_logits=True)
        assert trace.logits is not None
        expected.equal(match.string, trace.tokens)
        expected.within(f"greedy_step_logits_cfg{match[1]}", trace.logits, absolute=LOGITS)
