"""Check the LlamaGen backbone against golden numbers made by the official classes.

A set is a folder with a configuration, official-format weights and expected tensors. Everything that may
differ from set to set (sizes, grids, guidance scales, filters, crops) is read from the configuration, from
tensor names or from shapes.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from alignbench.api import Sampling
from alignbench.backbones.generate import filter_logits
from alignbench.backbones.llamagen.transformer import rope_table
from alignbench.backbones.text.captions import clean_caption
from alignbench.data.decode import center_crop_adm, random_crop_adm
from alignbench.files import parse_json
from alignbench.samples.pixels import resize_bicubic, to_uint8
from alignbench.verify.golden_files import Alternative, GoldenFile
from alignbench.verify.llamagen_networks import GoldenSet, check_c2i, check_t2i, check_vq
from alignbench.verify.report import CheckReport, read_object

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


def check(folder: Path) -> CheckReport:
    """Compare everything in a golden LlamaGen folder.

    A part that cannot be computed (missing or unreadable file, inputs that do not fit) is a row that is not
    ok; the other parts are still checked.

    Raises:
        UserError: the folder has no readable `config.json`.
    """
    report = CheckReport()
    golden = GoldenSet(folder, read_object(folder / "config.json"), report)
    absent = [file for file in FILES if not (folder / file).is_file()]
    for file in absent:
        report.add("MISSING", file, f"no such file in {folder}")
    for path in sorted(folder.glob("*.safetensors")):
        if path.name not in FILES:
            report.add("UNKNOWN", path.name, "no check knows this tensor")
    for needed, part in _PARTS.items():
        if not set(needed) & set(absent):
            with report.part(needed[-1]):
                part(golden)
    return report


# --- helpers around the networks ------------------------------------------------------------------


def _check_misc(golden: GoldenSet) -> None:
    expected = golden.expected("misc_io.safetensors")
    logits = expected.input("filter_in")
    form = rf"filter_out/topk(?P<k>\d+)_topp(?P<p>{NUMBER})_temp(?P<t>{NUMBER})"
    for match in expected.matching(form, at_least=1):
        sampling = Sampling(temperature=float(match["t"]), top_k=int(match["k"]), top_p=float(match["p"]))
        _check_filter(expected, match.string, logits, sampling)
    expected.compare("to_uint8_out", to_uint8(expected.input("to_uint8_in")))
    height, width = expected.peek("resize_out").shape[-2:]
    resized = resize_bicubic(expected.input("resize_in"), (height, width))
    expected.compare("resize_out", resized)
    expected.pixels("resize_out_uint8", resized)
    _check_crops(expected)
    for match in expected.matching(r"rope_(\d+)x(\d+)_hd(\d+)_rows", at_least=1):
        table = rope_table((int(match[1]), int(match[2])), int(match[3]), condition_tokens=1)
        expected.compare(match.string, _rows_like(expected.peek(match.string), table))
    expected.finish()


def _check_filter(expected: GoldenFile, name: str, logits: Tensor, sampling: Sampling) -> None:
    """Compare filtered logits; which of several *equal* logits top-p cuts off depends on torch's sort."""
    filtered = filter_logits(logits, sampling)
    unfiltered = filter_logits(logits, replace(sampling, top_k=0, top_p=1.0))
    swapped = unfiltered.masked_fill(expected.peek(name).isinf(), -torch.inf)
    same = torch.equal(swapped.sort().values, filtered.sort().values)
    other = Alternative(swapped, "up to equal logits at the edge")
    expected.compare(name, filtered, otherwise=(lambda: other) if same else None)


def _check_crops(expected: GoldenFile) -> None:
    for match in expected.matching(r"crop(\d+)_in", at_least=1):
        image = _image(expected.input(match.string))
        out = f"crop{match[1]}_out"
        size = expected.peek(out).shape[0]
        expected.compare(out, _pixels(center_crop_adm(image, size)))
    form = r"random_crop(?P<image>\d+)_seed(?P<seed>\d+)_size(?P<size>\d+)"
    for match in expected.matching(form, at_least=1):
        image = _image(expected.input(f"crop{match['image']}_in"))
        crop = random_crop_adm(image, int(match["size"]), random.Random(int(match["seed"])))
        expected.compare(match.string, _pixels(crop))


def _rows_like(wanted: Tensor, table: Tensor) -> Tensor:
    """Return the nearest rows of a table, in its order: names do not say which rows a tensor holds."""
    start, found = 0, []
    for row in wanted:
        start += int((table[start:] - row).abs().flatten(1).amax(dim=1).argmin())
        found.append(start)
    return table[found]


def _check_text(golden: GoldenSet) -> None:
    path = golden.folder / "text_cleaning.json"
    examples = parse_json(path.read_bytes())
    if not examples:
        golden.report.add("MISSING", path.name, "no examples in it")
    for index, example in enumerate(examples):
        golden.report.same_text(f"{path.name}:{index}", clean_caption(example["in"]), example["out"])


def _image(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.cpu().numpy())


def _pixels(image: Image.Image) -> Tensor:
    pixels = np.array(image).reshape(image.height, image.width, -1)
    return torch.from_numpy(pixels).to(torch.get_default_device())


_PARTS: dict[tuple[str, ...], Callable[[GoldenSet], None]] = {
    ("c2i_weights.safetensors", "c2i_io.safetensors"): check_c2i,
    ("t2i_weights.safetensors", "t2i_io.safetensors"): check_t2i,
    ("vq_weights.safetensors", "vq_io.safetensors"): check_vq,
    ("misc_io.safetensors",): _check_misc,
    ("text_cleaning.json",): _check_text,
}
"""Files of each part, the one that a failure is charged to last."""
