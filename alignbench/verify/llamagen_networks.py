"""The parts of a golden LlamaGen set that need a network: both transformers and the tokenizer."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alignbench.api import ClassLabels, Condition, Sampling, TextFeatures
from alignbench.backbones.generate import generate_steps
from alignbench.backbones.llamagen.gpt import GPT, GPTConfig, ffn_hidden, token_loss
from alignbench.backbones.llamagen.transformer import rope_table, text_mask
from alignbench.backbones.llamagen.vq import Quantised, Quantizer, VQConfig, VQModel
from alignbench.backbones.text.captions import left_pad
from alignbench.backbones.weights import load_strict, read_state_dict
from alignbench.errors import UserError
from alignbench.verify.golden_files import GoldenFile
from alignbench.verify.llamagen_rounding import Evaluations, Module
from alignbench.verify.report import CheckReport

SCALE = r"cfg(?P<scale>\d+(?:p\d+)?)"
"""A guidance scale in a tensor name, 7.5 written 7p5."""
MASK_MULTIPLE = 8
"""LlamaGen rounds the side of its sampling mask up to a multiple of this."""


@dataclass(frozen=True)
class GoldenSet:
    """A golden folder and where its results go."""

    folder: Path
    config: dict[str, Any]
    report: CheckReport

    def expected(self, file: str) -> GoldenFile:
        return GoldenFile(self.folder / file, self.report)

    def load(self, module: nn.Module, file: str) -> None:
        load_strict(module, read_state_dict(self.folder / file), name=file)
        module.eval()


def check_c2i(golden: GoldenSet) -> None:
    expected = golden.expected("c2i_io.safetensors")
    gpt = _gpt(golden, "c2i", expected)
    labels = ClassLabels(expected.input("labels"))
    tokens, valid = expected.input("tokens"), expected.input("valid")
    logits = gpt(labels, tokens)  # one position more than training sees
    results = {
        "tf_logits": logits[:, :-1],
        "eval_logits_last": logits[:, -1],
        "tf_loss": token_loss(logits[:, :-1], tokens),
        "tf_loss_valid": token_loss(logits[:, :-1], tokens, valid),
        "tf_logits_null": gpt(gpt.null(labels), tokens[:, :-1]),
    }
    expected.compare_all(results)
    _check_gradients(expected, gpt, lambda gpt: token_loss(gpt(labels, tokens[:, :-1]), tokens), at_least=2)
    _check_generation(golden, expected, gpt, {"": labels}, tokens)
    expected.matching(rf"greedy_{SCALE}_interval", at_least=1)
    expected.matching(rf"greedy_{SCALE}_logits", at_least=1)
    for match in expected.matching(r"sampled_seed\d+"):
        expected.info(match.string, "informational: depends on torch's own random stream")
    expected.finish()


def check_t2i(golden: GoldenSet) -> None:
    expected = golden.expected("t2i_io.safetensors")
    gpt = _gpt(golden, "t2i", expected)
    padded = left_pad(expected.input("caption_raw"), expected.input("mask_raw"))
    expected.compare_all({"caption": padded.features, "emb_masks": padded.mask})
    caption = TextFeatures(expected.peek("caption"), expected.peek("emb_masks").bool())
    unmasked = replace(caption, mask=torch.ones_like(caption.mask))
    tokens, valid = expected.input("tokens"), expected.input("valid")
    length = caption.mask.shape[1] + tokens.shape[1]
    side = MASK_MULTIPLE * math.ceil(length / MASK_MULTIPLE)
    expected.compare("sampling_mask", text_mask(caption.mask, side))

    context = tokens[:, :-1]
    masked, plain = gpt(caption, context), gpt(unmasked, context)
    results = {
        "tf_logits_masked": masked,
        "tf_loss_masked_valid": token_loss(masked, tokens, valid),
        "tf_logits_nomask": plain,
        "tf_loss_nomask": token_loss(plain, tokens),
        "tf_logits_uncond_masked": gpt(gpt.null(caption), context),
    }
    expected.compare_all(results)
    _check_gradients(expected, gpt, lambda gpt: token_loss(gpt(caption, context), tokens, valid), at_least=0)
    _check_generation(golden, expected, gpt, {"": caption, "_nomask": unmasked}, tokens)
    expected.matching(rf"greedy_{SCALE}", at_least=2)
    expected.matching(rf"greedy_{SCALE}_nomask", at_least=1)
    expected.finish()


def _gpt(golden: GoldenSet, kind: str, expected: GoldenFile) -> GPT:
    official = golden.config[kind]
    if official.get("n_kv_head") not in (None, official["n_head"]):
        raise UserError("config.json: n_kv_head asks for grouped queries, which no released model has")
    text = official["model_type"] == "t2i"
    multiplier = official.get("ffn_dim_multiplier")
    config = GPTConfig(
        dim=official["dim"],
        layers=official["n_layer"],
        heads=official["n_head"],
        ffn_hidden=ffn_hidden(official["dim"], multiple_of=official["multiple_of"], multiplier=multiplier),
        vocab_size=official["vocab_size"],
        grid=grid_of(official, expected),
        condition="text" if text else "class",
        num_classes=0 if text else official["num_classes"],
        null_class=official["class_dropout_prob"] > 0,
        caption_dim=official["caption_dim"] if text else 0,
        condition_tokens=official["cls_token_num"],
        norm_eps=official["norm_eps"],
        rope_base=official["rope_base"],
    )
    table = rope_table(config.grid, config.head_dim, config.condition_tokens, base=config.rope_base)
    expected.compare("rope_table", table)
    gpt = GPT(config)
    golden.load(gpt, f"{kind}_weights.safetensors")
    return gpt


def grid_of(config: Mapping[str, Any], expected: GoldenFile) -> tuple[int, int]:
    """Return (rows, columns): square if it can be, else what the expected rotation table shows."""
    tokens, head_dim = config["block_size"], config["dim"] // config["n_head"]
    side = math.isqrt(tokens)
    if side * side == tokens:
        return side, side
    wanted = expected.peek("rope_table")
    for rows in range(1, tokens + 1):
        grid = (rows, tokens // rows)
        table = rope_table(grid, head_dim, config["cls_token_num"], base=config["rope_base"])
        if table.shape == wanted.shape and torch.allclose(table, wanted, atol=1e-4):
            return grid
    raise UserError(f"config.json: no grid of {tokens} tokens has the rotation table of {expected.file}")


def _check_gradients(
    expected: GoldenFile, module: Module, loss: Callable[[Module], Tensor], *, at_least: int
) -> None:
    """Compare every parameter's gradient norm, and the gradients that are there in full.

    Some are small sums of many large terms, whose float32 rounding differs by as much as the tolerance from
    one processor or thread count to the next; float64 settles those.
    """
    gradients = Evaluations(module, partial(_gradients, loss=loss))
    for name, gradient in gradients.single.items():
        otherwise = partial(gradients.exact_norm, name)
        expected.compare(f"grad_norm/{name}", gradient.norm(), otherwise=otherwise)
    for match in expected.matching(r"grad/(.*)", at_least=at_least):
        if match[1] in gradients.single:
            gradients.compare(match[1], expected, match.string)


def _gradients(module: Module, loss: Callable[[Module], Tensor]) -> dict[str, Tensor]:
    names, parameters = zip(*module.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss(module), parameters), strict=True))


def _check_generation(
    golden: GoldenSet, expected: GoldenFile, gpt: GPT, conditions: dict[str, Condition], tokens: Tensor
) -> None:
    """Compare forced logits and greedy sequences; `conditions` by the suffix of their tensors' names."""
    expected.matching("cached_logits", at_least=1)
    expected.matching(rf"cached_logits_{SCALE}", at_least=1)
    expected.matching("greedy_nocfg", at_least=1)
    expected.matching(rf"greedy_{SCALE}", at_least=1)
    run = partial(generate_steps, gpt, uniforms=torch.zeros(tokens.shape).double(), keep_logits=True)
    for match in expected.matching(rf"cached_logits(?:_{SCALE})?"):
        sampling = Sampling(cfg_scale=_scale(match))
        trace = run(condition=conditions[""], sampling=sampling, forced=tokens)
        assert trace.logits is not None
        expected.compare(match.string, trace.logits)
    form = rf"greedy_(?:nocfg|{SCALE})(?P<interval>_interval)?(?P<condition>_nomask)?(?P<logits>_logits)?"
    for match in expected.matching(form):
        interval = golden.config["cfg_interval"] if match["interval"] else -1
        sampling = Sampling(greedy=True, cfg_scale=_scale(match), cfg_interval=interval)
        trace = run(condition=conditions[match["condition"] or ""], sampling=sampling)
        assert trace.logits is not None
        expected.compare(match.string, trace.logits if match["logits"] else trace.tokens)


def _scale(match: re.Match[str]) -> float:
    return float((match["scale"] or "1").replace("p", "."))


# --- the tokenizer --------------------------------------------------------------------------------


def check_vq(golden: GoldenSet) -> None:
    expected = golden.expected("vq_io.safetensors")
    vq = _vq(golden)
    image = expected.input("image")
    down = vq.config.downsample
    with torch.no_grad():
        _check_encoding(expected, vq, image)
        _check_decoding(expected, vq, (image.shape[2] // down, image.shape[3] // down))
    _check_training(expected, vq, image)
    expected.finish()


def _vq(golden: GoldenSet) -> VQModel:
    config = golden.config["vq"]
    weights = read_state_dict(golden.folder / "vq_weights.safetensors")
    window = weights.get("quantize.codebook_used", torch.empty(0)).numel()
    vq = VQModel(
        VQConfig(
            base_channels=config["ch"],
            multipliers=tuple(config["ch_mult"]),
            res_blocks=config["num_res_blocks"],
            z_channels=config["z_channels"],
            codebook_size=config["codebook_size"],
            code_dim=config["codebook_embed_dim"],
            l2_norm=config["codebook_l2_norm"],
            commitment=config["commit_loss_beta"],
            entropy_ratio=config["entropy_loss_ratio"],
            in_channels=config["in_out_channels"],
            usage_window=window,
        )
    )
    golden.load(vq, "vq_weights.safetensors")
    return vq


def _check_encoding(expected: GoldenFile, vq: VQModel, image: Tensor) -> None:
    latent = vq.latent(image)
    quantised: Quantised = vq.quantize(latent)
    results = {
        "encoder_out": vq.encoder(image),
        "latent": latent,
        "indices": quantised.tokens.flatten(),
        "quant": quantised.embeddings,
    }
    expected.compare_all(results)
    decoded = Evaluations(vq, lambda vq: {"recon": vq.decode_map(quantised.embeddings)})
    decoded.compare("recon", expected)
    plain = Quantizer(replace(vq.config, l2_norm=False))
    plain.load_state_dict(vq.quantize.state_dict())
    unnormalised: Quantised = plain(latent)
    expected.compare("nol2_indices", unnormalised.tokens.flatten())
    expected.compare("nol2_quant", unnormalised.embeddings)


def _check_decoding(expected: GoldenFile, vq: VQModel, grid: tuple[int, int]) -> None:
    codes = expected.input("codes")
    entries = vq.quantize.lookup(codes)
    channels_last = entries.unflatten(1, grid)
    images = Evaluations(vq, lambda vq: {"codes_decoded": vq.decode(codes, grid)})
    expected.compare("codes_entry_flat", entries)
    expected.compare("codes_entry_nhwc", channels_last)
    expected.compare("codes_entry_nchw", channels_last.permute(0, 3, 1, 2))
    images.compare("codes_decoded", expected)
    expected.pixels("codes_decoded_uint8", images.single["codes_decoded"])


def _check_training(expected: GoldenFile, vq: VQModel, image: Tensor) -> None:
    """One training step's losses, their gradients, and the usage window it leaves behind."""

    def total_loss(vq: VQModel) -> Tensor:
        reconstruction, *losses = vq.train_losses(image.to(vq.quant_conv.weight.dtype))
        return (reconstruction - image).square().mean() + losses[0] + losses[1] + losses[2]

    vq.quantize.codebook_used.zero_()
    expected.compare("train_losses", torch.stack(vq.train_losses(image)[1:]))
    (length,) = expected.peek("codebook_used_tail").shape
    expected.compare("codebook_used_tail", vq.quantize.codebook_used[-length:].long())
    expected.compare("train_total", total_loss(vq))
    _check_gradients(expected, vq, total_loss, at_least=2)
