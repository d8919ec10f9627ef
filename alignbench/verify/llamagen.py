"""Check the LlamaGen backbone against golden numbers made by the official classes.

A set is a folder with a configuration, official-format weights and expected tensors. Everything that may
differ from set to set (sizes, grids, guidance scales, filters, crops) is read from the configuration, from
tensor names or from shapes.
"""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn

from alignbench.api import ClassLabels, Condition, Sampling, TextFeatures
from alignbench.backbones.captions import clean_caption, left_pad
from alignbench.backbones.containers import load_strict, read_state_dict
from alignbench.backbones.generate import Trace, filter_logits, generate_steps
from alignbench.backbones.gpt import GPT, GPTConfig, ffn_hidden, token_loss
from alignbench.backbones.pixels import resize_bicubic, to_uint8
from alignbench.backbones.transformer import rope_table, text_mask
from alignbench.backbones.vq import Quantised, Quantizer, VQConfig, VQModel
from alignbench.data.crops import center_crop_adm, random_crop_adm
from alignbench.errors import UserError
from alignbench.verify.expected import Expected, InputMissing
from alignbench.verify.report import Report, Row

FILES = (
    "c2i_weights.safetensors",
    "c2i_io.safetensors",
    "t2i_weights.safetensors",
    "t2i_io.safetensors",
    "vq_weights.safetensors",
    "vq_io.safetensors",
    "misc_io.safetensors",
    "text_cleaning.json",
)
NUMBER = r"\d+(?:\.\d+)?"
SCALE = r"cfg(?P<scale>\d+(?:p\d+)?)"
"""A guidance scale in a tensor name, 7.5 written 7p5."""
STRAY_PIXELS = 1e-3
"""Share of the 8-bit pixels of a decoded image that may be off by one."""
MASK_MULTIPLE = 8
"""LlamaGen rounds the side of its sampling mask up to a multiple of this."""

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class _Set:
    """A golden folder and where its results go."""

    folder: Path
    config: dict[str, Any]
    report: Report

    def expected(self, file: str) -> Expected:
        return Expected(self.folder / file, self.report)

    def load(self, module: nn.Module, file: str) -> None:
        load_strict(module, read_state_dict(self.folder / file), name=file)
        module.eval()


def check(folder: Path) -> Report:
    """Compare everything in a golden LlamaGen folder.

    A part that cannot be computed (missing or unreadable file, inputs that do not fit) is a row that is not
    ok; the other parts are still checked.

    Raises:
        UserError: the folder has no readable `config.json`.
    """
    report = Report()
    golden = _Set(folder, _read_config(folder), report)
    absent = [file for file in FILES if not (folder / file).is_file()]
    for file in absent:
        report.missing(file, f"no such file in {folder}")
    for path in sorted(folder.glob("*.safetensors")):
        if path.name not in FILES:
            report.unknown(path.name)
    for needed, part in _PARTS.items():
        if not set(needed) & set(absent):
            _run(part, golden, needed[-1])
    return report


def _run(part: Callable[[_Set], None], golden: _Set, file: str) -> None:
    """Run one part; what stops it becomes a row."""
    try:
        part(golden)
    except InputMissing:
        return  # the report has a row for it
    except UserError as error:
        golden.report.rows.append(Row(file, None, None, "MISS", str(error)))
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        # The set's own numbers do not fit together, or do not fit its configuration.
        note = f"cannot be computed: {type(error).__name__}: {error}"
        golden.report.rows.append(Row(file, None, None, "MISS", note))


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{folder} holds no config.json", fix="name the folder of a golden set") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable JSON: {error}", fix="get the golden set again") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} is not a JSON object", fix="get the golden set again")
    return config


# --- the transformer ------------------------------------------------------------------------------


def _check_c2i(golden: _Set) -> None:
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


def _check_t2i(golden: _Set) -> None:
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


def _gpt(golden: _Set, kind: str, expected: Expected) -> GPT:
    config = _gpt_config(golden.config[kind], expected)
    table = rope_table(config.grid, config.head_dim, config.condition_tokens, base=config.rope_base)
    expected.close("rope_table", table)
    gpt = GPT(config)
    golden.load(gpt, f"{kind}_weights.safetensors")
    return gpt


def _gpt_config(config: dict[str, Any], expected: Expected) -> GPTConfig:
    if config["n_kv_head"] not in (None, config["n_head"]):
        raise UserError("config.json: n_kv_head asks for grouped queries, which no released model has")
    text = config["model_type"] == "t2i"
    multiplier = config["ffn_dim_multiplier"]
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


def _grid(config: dict[str, Any], expected: Expected) -> tuple[int, int]:
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
    expected: Expected, module: Module, loss: Callable[[Module], Tensor], *, at_least: int
) -> None:
    """Compare every parameter's gradient norm, and the gradients that are there in full.

    Some are small sums of many large terms, whose float32 rounding differs by as much as the tolerance from
    one processor or thread count to the next; float64 settles those.
    """
    single = _gradients(module, loss)
    double = _gradients(copy.deepcopy(module).double(), loss)
    note = "in float64"
    for name in single:
        exact = double[name].norm().reshape(1)
        expected.close(f"grad_norm/{name}", single[name].norm().reshape(1), otherwise=(exact, note))
    for match in expected.matching(r"grad/(.*)", at_least=at_least):
        if match[1] in single:
            expected.close(match.string, single[match[1]], otherwise=(double[match[1]], note))


def _gradients(module: Module, loss: Callable[[Module], Tensor]) -> dict[str, Tensor]:
    names, parameters = zip(*module.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss(module), parameters), strict=True))


def _check_generation(
    golden: _Set, expected: Expected, gpt: GPT, conditions: dict[str, Condition], tokens: Tensor
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


def _check_vq(golden: _Set) -> None:
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


def _vq_config(golden: _Set) -> VQConfig:
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


def _check_encoding(expected: Expected, vq: VQModel, image: Tensor) -> None:
    latent = vq.latent(image)
    quantised: Quantised = vq.quantize(latent)
    expected.close("encoder_out", vq.encoder(image))
    expected.close("latent", latent)
    expected.equal("indices", quantised.tokens.flatten())
    expected.close("quant", quantised.embeddings)
    expected.close("recon", vq.decode_map(quantised.embeddings))
    plain = Quantizer(replace(vq.config, l2_norm=False))
    plain.load_state_dict(vq.quantize.state_dict())
    unnormalised: Quantised = plain(latent)
    expected.equal("nol2_indices", unnormalised.tokens.flatten())
    expected.close("nol2_quant", unnormalised.embeddings)


def _check_decoding(expected: Expected, vq: VQModel, grid: tuple[int, int]) -> None:
    codes = expected.input("codes")
    entries = vq.quantize.lookup(codes)
    channels_last = entries.unflatten(1, grid)
    decoded = vq.decode(codes, grid)
    expected.close("codes_entry_flat", entries)
    expected.close("codes_entry_nhwc", channels_last)
    expected.close("codes_entry_nchw", channels_last.permute(0, 3, 1, 2))
    expected.close("codes_decoded", decoded)
    expected.equal("codes_decoded_uint8", to_uint8(decoded).permute(0, 2, 3, 1), stray=STRAY_PIXELS)


def _check_training(expected: Expected, vq: VQModel, image: Tensor) -> None:
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


# --- helpers around the networks ------------------------------------------------------------------


def _check_misc(golden: _Set) -> None:
    expected = golden.expected("misc_io.safetensors")
    logits = expected.input("filter_in")
    form = rf"filter_out/topk(?P<k>\d+)_topp(?P<p>{NUMBER})_temp(?P<t>{NUMBER})"
    for match in expected.matching(form, at_least=1):
        sampling = Sampling(temperature=float(match["t"]), top_k=int(match["k"]), top_p=float(match["p"]))
        _check_filter(expected, match.string, logits, sampling)
    expected.equal("to_uint8_out", to_uint8(expected.input("to_uint8_in")))
    height, width = expected.shape("resize_out")[-2:]
    resized = resize_bicubic(expected.input("resize_in"), (height, width))
    expected.close("resize_out", resized)
    expected.equal("resize_out_uint8", to_uint8(resized).permute(0, 2, 3, 1))
    _check_crops(expected)
    for match in expected.matching(r"rope_(\d+)x(\d+)_hd(\d+)_rows", at_least=1):
        _check_rope_rows(expected, match.string, (int(match[1]), int(match[2])), int(match[3]))
    expected.finish()


def _check_filter(expected: Expected, name: str, logits: Tensor, sampling: Sampling) -> None:
    """Compare filtered logits; which of several *equal* logits top-p cuts off depends on torch's sort."""
    filtered = filter_logits(logits, sampling)
    unfiltered = filter_logits(logits, replace(sampling, top_k=0, top_p=1.0))
    swapped = unfiltered.masked_fill(expected.peek(name).isinf(), -torch.inf)
    if torch.equal(swapped.sort().values, filtered.sort().values):
        expected.close(name, filtered, otherwise=(swapped, "up to equal logits at the edge"))
    else:
        expected.close(name, filtered)


def _check_crops(expected: Expected) -> None:
    for match in expected.matching(r"crop(\d+)_in", at_least=1):
        image = _image(expected.input(match.string))
        out = f"crop{match[1]}_out"
        size = expected.shape(out)[0]
        expected.equal(out, _pixels(center_crop_adm(image, size)))
    form = r"random_crop(?P<image>\d+)_seed(?P<seed>\d+)_size(?P<size>\d+)"
    for match in expected.matching(form, at_least=1):
        image = _image(expected.input(f"crop{match['image']}_in"))
        crop = random_crop_adm(image, int(match["size"]), random.Random(int(match["seed"])))
        expected.equal(match.string, _pixels(crop))


def _check_rope_rows(expected: Expected, name: str, grid: tuple[int, int], head_dim: int) -> None:
    """Compare some rows of a table with one condition token.

    The name does not say which rows: they are found by content and must come in the table's order.
    """
    table = rope_table(grid, head_dim, condition_tokens=1)
    wanted = expected.peek(name)
    start, found = 0, []
    for row in wanted:
        distance = (table[start:] - row).abs().flatten(1).amax(dim=1)
        start += int(distance.argmin())
        found.append(start)
    expected.close(name, table[found])


def _check_text(golden: _Set) -> None:
    path = golden.folder / "text_cleaning.json"
    examples = json.loads(path.read_text(encoding="utf-8"))
    if not examples:
        golden.report.missing(path.name, "no examples in it")
    for index, example in enumerate(examples):
        cleaned = clean_caption(example["in"])
        same = cleaned == example["out"]
        note = "" if same else f"{cleaned!r} instead of {example['out']!r}"
        row = Row(f"{path.name}:{index}", float(not same), 0.0, "ok" if same else "MISS", note)
        golden.report.rows.append(row)


def _image(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.numpy())


def _pixels(image: Image.Image) -> Tensor:
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, -1)


_PARTS: dict[tuple[str, ...], Callable[[_Set], None]] = {
    ("c2i_weights.safetensors", "c2i_io.safetensors"): _check_c2i,
    ("t2i_weights.safetensors", "t2i_io.safetensors"): _check_t2i,
    ("vq_weights.safetensors", "vq_io.safetensors"): _check_vq,
    ("misc_io.safetensors",): _check_misc,
    ("text_cleaning.json",): _check_text,
}
"""Files of each part, the one that a failure is charged to last."""
