"""The parts of a golden LlamaGen set that need a network: both transformers and the tokenizer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alignbench.api import ClassLabels, Condition, Sampling, TextFeatures
from alignbench.backbones.generate import Trace, generate_steps
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
    expected.close("tf_logits", logits[:, :-1])
    expected.close("eval_logits_last", logits[:, -1])
    expected.close("tf_loss", token_loss(logits[:, :-1], tokens).reshape(1))
    expected.close("tf_loss_valid", token_loss(logits[:, :-1], tokens, valid).reshape(1))
    expected.close("tf_logits_null", gpt(gpt.null(labels), tokens[:, :-1]))
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
    expected.close("caption", padded.features)
    expected.equal("emb_masks", padded.mask)
    caption = TextFeatures(expected.peek("caption"), expected.peek("emb_masks").bool())
    unmasked = replace(caption, mask=torch.ones_like(caption.mask))
    tokens, valid = expected.input("tokens"), expected.input("valid")
    length = caption.mask.shape[1] + tokens.shape[1]
    side = MASK_MULTIPLE * math.ceil(length / MASK_MULTIPLE)
    expected.equal("sampling_mask", text_mask(caption.mask, side))

    context = tokens[:, :-1]
    masked = gpt(caption, context)
    expected.close("tf_logits_masked", masked)
    expected.close("tf_loss_masked_valid", token_loss(masked, tokens, valid).reshape(1))
    plain = gpt(unmasked, context)
    expected.close("tf_logits_nomask", plain)
    expected.close("tf_loss_nomask", token_loss(plain, tokens).reshape(1))
    expected.close("tf_logits_uncond_masked", gpt(gpt.null(caption), context))
    _check_gradients(expected, gpt, lambda gpt: token_loss(gpt(caption, context), tokens, valid), at_least=0)
    _check_generation(golden, expected, gpt, {"": caption, "_nomask": unmasked}, tokens)
    expected.matching(rf"greedy_{SCALE}", at_least=2)
    expected.matching(rf"greedy_{SCALE}_nomask", at_least=1)
    expected.finish()


def _gpt(golden: GoldenSet, kind: str, expected: GoldenFile) -> GPT:
    config = _gpt_config(golden.config[kind], expected)
    table = rope_table(config.grid, config.head_dim, config.condition_tokens, base=config.rope_base)
    expected.close("rope_table", table)
    gpt = GPT(config)
    golden.load(gpt, f"{kind}_weights.safetensors")
    return gpt


def _gpt_config(config: dict[str, Any], expected: GoldenFile) -> GPTConfig:
    if config.get("n_kv_head") not in (None, config["n_head"]):
        raise UserError("config.json: n_kv_head asks for grouped queries, which no released model has")
    text = config["model_type"] == "t2i"
    multiplier = config.get("ffn_dim_multiplier")
    return GPTConfig(
        dim=config["dim"],
        layers=config["n_layer"],
        heads=config["n_head"],
        ffn_hidden=ffn_hidden(config["dim"], multiple_of=config["multiple_of"], multiplier=multiplier),
        vocab_size=config["vocab_size"],
        grid=_grid(config, expected),
        condition="text" if text else "class",
        num_classes=0 if text else config["num_classes"],
        null_class=config["class_dropout_prob"] > 0,
        caption_dim=config["caption_dim"] if text else 0,
        condition_tokens=config["cls_token_num"],
        norm_eps=config["norm_eps"],
        rope_base=config["rope_base"],
    )


def _grid(config: dict[str, Any], expected: GoldenFile) -> tuple[int, int]:
    """Return (rows, columns): square if it can be, else what the expected rotation table shows."""
    tokens, head_dim = config["block_size"], config["dim"] // config["n_head"]
    side = math.isqrt(tokens)
    if side * side == tokens:
        return side, side
    shape = expected.shape("rope_table")
    for rows in range(1, tokens + 1):
        grid = (rows, tokens // rows)
        table = rope_table(grid, head_dim, config["cls_token_num"], base=config["rope_base"])
        if table.shape == shape and torch.allclose(table, expected.peek("rope_table"), atol=1e-4):
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
        norm = gradient.norm().reshape(1)
        expected.close(f"grad_norm/{name}", norm, otherwise=partial(gradients.exact_norm, name))
    for match in expected.matching(r"grad/(.*)", at_least=at_least):
        name = match[1]
        if name in gradients.single:
            otherwise = partial(gradients.exact, name)
            expected.close(match.string, gradients.single[name], otherwise=otherwise)


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
    for match in expected.matching(rf"cached_logits(?:_{SCALE})?"):
        sampling = Sampling(cfg_scale=_scale(match["scale"]))
        trace = _follow(gpt, conditions[""], tokens, sampling, forced=tokens)
        expected.close(match.string, _kept(trace))
    form = rf"greedy_(?:nocfg|{SCALE})(?P<interval>_interval)?(?P<condition>_nomask)?(?P<logits>_logits)?"
    for match in expected.matching(form):
        interval = golden.config["cfg_interval"] if match["interval"] else -1
        sampling = Sampling(greedy=True, cfg_scale=_scale(match["scale"]), cfg_interval=interval)
        trace = _follow(gpt, conditions[match["condition"] or ""], tokens, sampling, forced=None)
        if match["logits"]:
            expected.close(match.string, _kept(trace))
        else:
            expected.equal(match.string, trace.tokens)


def _follow(
    gpt: GPT, condition: Condition, tokens: Tensor, sampling: Sampling, *, forced: Tensor | None
) -> Trace:
    uniforms = torch.zeros(tokens.shape, dtype=torch.float64)
    return generate_steps(gpt, condition, uniforms, sampling, forced=forced, keep_logits=True)


def _kept(trace: Trace) -> Tensor:
    assert trace.logits is not None
    return trace.logits


def _scale(text: str | None) -> float:
    return 1.0 if text is None else float(text.replace("p", "."))


# --- the tokenizer --------------------------------------------------------------------------------


def check_vq(golden: GoldenSet) -> None:
    expected = golden.expected("vq_io.safetensors")
    config = _vq_config(golden)
    vq = VQModel(config)
    golden.load(vq, "vq_weights.safetensors")
    image = expected.input("image")
    grid = (image.shape[2] // config.downsample, image.shape[3] // config.downsample)
    with torch.no_grad():
        _check_encoding(expected, vq, image)
        _check_decoding(expected, vq, grid)
    _check_training(expected, vq, image)
    expected.finish()


def _vq_config(golden: GoldenSet) -> VQConfig:
    config = golden.config["vq"]
    weights = read_state_dict(golden.folder / "vq_weights.safetensors")
    window = weights.get("quantize.codebook_used", torch.empty(0)).numel()
    return VQConfig(
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


def _check_encoding(expected: GoldenFile, vq: VQModel, image: Tensor) -> None:
    latent = vq.latent(image)
    quantised: Quantised = vq.quantize(latent)
    expected.close("encoder_out", vq.encoder(image))
    expected.close("latent", latent)
    expected.equal("indices", quantised.tokens.flatten())
    expected.close("quant", quantised.embeddings)
    decoded = Evaluations(vq, lambda vq: {"recon": vq.decode_map(quantised.embeddings)})
    expected.close("recon", decoded.single["recon"], otherwise=partial(decoded.exact, "recon"))
    plain = Quantizer(replace(vq.config, l2_norm=False))
    plain.load_state_dict(vq.quantize.state_dict())
    unnormalised: Quantised = plain(latent)
    expected.equal("nol2_indices", unnormalised.tokens.flatten())
    expected.close("nol2_quant", unnormalised.embeddings)


def _check_decoding(expected: GoldenFile, vq: VQModel, grid: tuple[int, int]) -> None:
    codes = expected.input("codes")
    entries = vq.quantize.lookup(codes)
    channels_last = entries.unflatten(1, grid)
    images = Evaluations(vq, lambda vq: {"codes_decoded": vq.decode(codes, grid)})
    decoded = images.single["codes_decoded"]
    expected.close("codes_entry_flat", entries)
    expected.close("codes_entry_nhwc", channels_last)
    expected.close("codes_entry_nchw", channels_last.permute(0, 3, 1, 2))
    expected.close("codes_decoded", decoded, otherwise=partial(images.exact, "codes_decoded"))
    expected.pixels("codes_decoded_uint8", decoded)


def _check_training(expected: GoldenFile, vq: VQModel, image: Tensor) -> None:
    """One training step's losses, their gradients, and the usage window it leaves behind."""

    def total_loss(vq: VQModel) -> Tensor:
        reconstruction, *losses = vq.train_losses(image.to(vq.quant_conv.weight.dtype))
        return (reconstruction - image).square().mean() + losses[0] + losses[1] + losses[2]

    vq.quantize.codebook_used.zero_()
    expected.close("train_losses", torch.stack(vq.train_losses(image)[1:]))
    (length,) = expected.shape("codebook_used_tail")
    expected.equal("codebook_used_tail", vq.quantize.codebook_used[-length:])
    expected.close("train_total", total_loss(vq).reshape(1))
    _check_gradients(expected, vq, total_loss, at_least=2)
