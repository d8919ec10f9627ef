"""GenEval's folder layout: read, written, refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from alignbench.api import ImageBatch, Prompt
from alignbench.samples.external import open_samples
from alignbench.samples.geneval_layout import is_geneval_folder, read_layout, write_layout, write_results
from tests.helpers.data_sets import refused

LINES = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {
        "tag": "position",
        "include": [{"class": "sink", "count": 1}, {"class": "tie", "count": 1, "position": ["above", 0]}],
        "prompt": "a photo of a tie above a sink",
    },
    {
        "tag": "counting",
        "include": [{"class": "cow", "count": 2}],
        "exclude": [{"class": "cow", "count": 3}],
        "prompt": "a photo of two cows",
    },
]
PROMPTS = [Prompt(text=str(line["prompt"]), tag=str(line["tag"]), metadata=line) for line in LINES]


def batches(prompts: Sequence[Prompt], size: int, seed: int = 0) -> list[ImageBatch]:
    numbers = np.random.default_rng(seed)
    pixels = torch.from_numpy(numbers.integers(0, 256, (len(prompts), 3, 8, 8), dtype=np.uint8))
    return [
        ImageBatch(ids=range(at, at + len(piece)), images=pixels[at : at + size], prompts=piece)
        for at in range(0, len(prompts), size)
        for piece in [prompts[at : at + size]]
    ]


def folder(root: Path, number: str, line: object, images: Sequence[str] = ("0000.png",)) -> Path:
    samples = root / number / "samples"
    samples.mkdir(parents=True)
    (root / number / "metadata.jsonl").write_text(json.dumps(line))
    for name in images:
        Image.new("RGB", (8, 8)).save(samples / name)
    return samples


@pytest.mark.parametrize("size", [3, 100])
def test_round_trip_keeps_pixels_prompts_and_order(tmp_path: Path, size: int) -> None:
    prompts = [prompt for prompt in PROMPTS for _ in range(4)]
    written = batches(prompts, size)
    assert write_layout(tmp_path, written) == 12
    assert is_geneval_folder(tmp_path)
    layout = read_layout(tmp_path)
    assert [prompt for _, prompt in layout] == prompts
    assert [str(file.relative_to(tmp_path)) for file, _ in layout[3:5]] == [
        "00000/samples/0003.png",
        "00001/samples/0000.png",
    ]
    for wanted in ([], prompts):
        images = open_samples(tmp_path, image_size=8, prompts=wanted).load(0)
        assert torch.equal(images.images, torch.cat([batch.images for batch in written]))
        assert list(images.prompts) == prompts
    hen, first = [Prompt("a hen")], PROMPTS[0].text
    for others, reason in (
        (prompts[:8], "'a photo of two cows' is not among the prompts of the protocol's 8 images"),
        ([*prompts, *hen], "0 images of 'a hen' where the protocol has 1 → --set protocol.samples=12,"),
        ([*prompts[1:], *hen], f"4 images of '{first}' where the protocol has 3 → give as many of every"),
        (hen + prompts, "0 images of 'a hen' where the protocol has 1 → give as many of every"),
    ):
        assert reason in refused(open_samples, tmp_path, image_size=8, prompts=others)


def test_a_prompt_that_returns_keeps_the_order(tmp_path: Path) -> None:
    prompts = [PROMPTS[0], PROMPTS[1], PROMPTS[0]]
    write_layout(tmp_path, batches(prompts, 2))
    assert [prompt for _, prompt in read_layout(tmp_path)] == prompts
    assert len(list(tmp_path.iterdir())) == 3


def test_numbers_sort_as_numbers_and_other_names_are_passed_over(tmp_path: Path) -> None:
    folder(tmp_path, "00010", LINES[0], ["10.png", "9.png", "grid.png", "00a.png"])
    folder(tmp_path, "9", LINES[1], ["0000.png"])
    folder(tmp_path, "notes", LINES[2])
    (tmp_path / "00010" / "samples" / "9.txt").write_text("")
    (tmp_path / "00010" / "grid.png").write_bytes(b"")
    found = [str(file.relative_to(tmp_path)) for file, _ in read_layout(tmp_path)]
    assert found == ["9/samples/0000.png", "00010/samples/9.png", "00010/samples/10.png"]


def test_folders_that_do_not_fit_are_named(tmp_path: Path) -> None:
    assert not is_geneval_folder(tmp_path / "absent")
    (tmp_path / "other" / "00000").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "other" / "00000" / "0000.png")
    assert not is_geneval_folder(tmp_path / "other")
    assert "metadata.jsonl" in refused(read_layout, tmp_path / "other")
    folder(tmp_path, "00000", LINES[0])
    folder(tmp_path, "00001", LINES[1], [])
    assert "00001/samples: no image" in refused(read_layout, tmp_path)
    for text in ("", "[]", "{}", '{"prompt": "a"}\n{"prompt": "b"}', "not json"):
        (tmp_path / "00000" / "metadata.jsonl").write_text(text)
        assert "00000/metadata.jsonl is not one JSON object" in refused(read_layout, tmp_path)


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    batch = ImageBatch(ids=[0], images=torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    assert "without prompts" in refused(write_layout, tmp_path, [batch])
    folder(tmp_path, "00007", LINES[0])
    assert "already holds" in refused(write_layout, tmp_path, batches(PROMPTS, 2))


def test_images_turned_by_exif_are_refused(tmp_path: Path) -> None:
    file = folder(tmp_path, "00000", LINES[0]) / "0000.png"
    exif = Image.Exif()
    for exif[0x0112] in (1, 3, 6):
        Image.new("RGB", (8, 8)).save(file, exif=exif)
        if exif[0x0112] == 1:
            assert len(read_layout(tmp_path)) == 1
        else:
            assert f"0000.png: EXIF orientation {exif[0x0112]}" in refused(read_layout, tmp_path)
    # It may stand after the pixels.
    data = file.read_bytes()
    start = data.index(b"eXIf") - 4
    length = int.from_bytes(data[start : start + 4], "big") + 12
    chunk, rest = data[start : start + length], data[:start] + data[start + length :]
    end = rest.index(b"IEND") - 4
    file.write_bytes(rest[:end] + chunk + rest[end:])
    assert file.read_bytes() != data
    assert "EXIF orientation 6" in refused(read_layout, tmp_path)


def test_results_have_the_columns_of_the_official_summary(tmp_path: Path) -> None:
    write_layout(tmp_path / "images", batches(PROMPTS, 3))
    layout = read_layout(tmp_path / "images")
    write_results(tmp_path / "results.jsonl", layout, [True, False, True], ["", "why", ""])
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [line["tag"] for line in lines] == ["single_object", "position", "counting"]
    assert [line["correct"] for line in lines] == [True, False, True]
    assert [json.loads(line["metadata"]) for line in lines] == LINES
    assert set(lines[0]) == {"filename", "tag", "prompt", "correct", "reason", "metadata", "details"}
