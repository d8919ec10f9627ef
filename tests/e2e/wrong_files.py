"""Files that are wrong in many ways, for `test_wrong_inputs.py`: nothing is downloaded, all are small."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from alignbench.files import package_file
from tests.conftest import ROOT

RECORD = ROOT / "tests" / "golden" / "records" / "vapi-llamagen-tiny-s0-11111111.json"
DEEP = "[" * 100_000
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 1000\n"
CARD = 'title = "T"\nsummary = "S."\n'


def text(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode(errors="surrogatepass") if isinstance(content, str) else content)


def pictures(folder: Path, *names: str, size: int = 8, mode: str = "RGB") -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, (size, size), number % 200).save(folder / name)


def geneval(folder: Path, line: str, count: int = 1) -> None:
    for number in range(count):
        text(folder / f"{number:05d}" / "metadata.jsonl", line)
        pictures(folder / f"{number:05d}" / "samples", "00000.png", size=16)


def archive(path: Path, **arrays: Any) -> None:
    np.savez(path, **arrays)


def make_weights(root: Path) -> None:
    text(root / "lfs.safetensors", LFS)
    text(root / "page.pt", "<!DOCTYPE html><html><title>Sign in</title></html>")
    text(root / "empty.safetensors", b"")
    text(root / "header.safetensors", b"\xff" * 64)
    whole = package_file("weights/llamagen-tiny/policy.safetensors").read_bytes()
    text(root / "cut.safetensors", whole[: len(whole) // 2])
    torch.save({"model": {"output.weight": np.float64(1)}}, root / "numpy.pt")
    torch.save({"model": {"a": 1}}, root / "scalars.pt")
    torch.save([torch.zeros(3)], root / "list.pt")
    text(root / "index.json", DEEP)
    save_file({"x": torch.zeros(1)}, root / "words.safetensors", metadata={"word_encoder": DEEP})


def make_samples(root: Path) -> None:
    images = np.zeros((20, 8, 8, 3), np.uint8)
    archive(root / "float.npz", arr_0=images.astype(np.float32))
    archive(root / "channels.npz", arr_0=images.transpose(0, 3, 1, 2))
    archive(root / "gray.npz", arr_0=images[..., 0])
    archive(root / "other.npz", images=images)
    archive(root / "none.npz", arr_0=images[:0])
    archive(root / "objects.npz", arr_0=np.array([None] * 20))
    archive(root / "labels.npz", arr_0=images, arr_1=np.full(20, 99))
    archive(root / "labels-short.npz", arr_0=images, arr_1=np.zeros(3, np.int64))
    archive(root / "labels-float.npz", arr_0=images, arr_1=np.full(20, np.nan))
    archive(root / "whole.npz", arr_0=images)
    content = (root / "whole.npz").read_bytes()
    text(root / "cut.npz", content[:-50])
    text(root / "flipped.npz", content[:200] + bytes([content[200] ^ 1]) + content[201:])
    text(root / "empty.npz", b"")
    text(root / "text.npz", "no archive")
    np.save(root / "array.npy", images)
    text(root / "words" / "a.txt", "no image")
    (root / "hollow").mkdir()
    pictures(root / "large", *(f"{n}.png" for n in range(20)), size=9)
    pictures(root / "transparent", *(f"{n}.png" for n in range(20)), mode="RGBA")
    pictures(root / "damaged", *(f"{n}.png" for n in range(20)))
    text(root / "damaged" / "7.png", b"\x89PNG\r\n\x1a\nno")
    pictures(root / "gaps", *(f"{c}/{n}.png" for c in (0, 1, 12) for n in range(7)))
    pictures(root / "words-and-numbers", *(f"{c}/{n}.png" for c in ("1", "cat") for n in range(10)))


def make_geneval(root: Path) -> None:
    known = json.loads(package_file("weights/shapes-tiny/prompts.jsonl").read_text().splitlines()[0])
    geneval(root / "altered", json.dumps({**known, "include": []}))
    geneval(root / "tagged", json.dumps({**known, "tag": "position"}))
    geneval(root / "unknown", json.dumps({"prompt": "a photo of a cat"}))
    geneval(root / "nested", '{"prompt": ' + DEEP)
    geneval(root / "surrogate", '{"prompt": "a \\ud800"}')
    geneval(root / "doubled", '{"prompt": "a", "prompt": "b"}')
    geneval(root / "number", '{"prompt": 3}')
    geneval(root / "blank", "")
    geneval(root / "array", "[1]")
    geneval(root / "no-utf8", "x")
    text(root / "no-utf8" / "00000" / "metadata.jsonl", b'{"prompt": "\xff"}')
    geneval(root / "imageless", json.dumps(known))
    shutil.rmtree(root / "imageless" / "00000" / "samples")


def make_data(root: Path) -> None:
    pictures(root / "one-class", "0/a.png")
    pictures(root / "gappy", *(f"{c}/a.png" for c in (0, 1, 2, 3, 4, 5, 6, 7, 8, 11)))
    pictures(root / "ten", *(f"{c}/a.png" for c in range(10)))
    pictures(root / "many", *(f"{c}/a.png" for c in range(12)))
    text(root / "bom.txt", b"\xef\xbb\xbf" + "\n".join("abcdefghij").encode())
    text(root / "twice.txt", "\n".join("0123456788"))
    text(root / "few.txt", "0\n1\n")
    text(root / "no-utf8.txt", b"\xff\xfe\n1\n")
    text(root / "list.json", DEEP)
    text(root / "lines.jsonl", DEEP + "\n")
    text(root / "escaping.jsonl", '{"image": "/etc/passwd", "caption": "a"}\n')
    text(root / "no-lines.jsonl", "")
    text(root / "no-tar.tar", "no tar")
    with tarfile.open(root / "captionless.tar", "w") as shard:
        picture = io.BytesIO()
        Image.new("RGB", (16, 16)).save(picture, "PNG")
        entry = tarfile.TarInfo("a.png")
        entry.size = len(picture.getvalue())
        shard.addfile(entry, io.BytesIO(picture.getvalue()))
    text(root / "cut.tar", (root / "captionless.tar").read_bytes()[:700])


def make_prompts(root: Path) -> None:
    text(root / "surrogate.jsonl", '{"prompt": "a \\ud800"}\n')
    text(root / "nested.jsonl", DEEP + "\n")
    text(root / "nothing.jsonl", "\n\n")
    text(root / "quote.tsv", 'Prompt\tCategory\n"a cat\tA\na dog\tB\n')
    text(root / "no-utf8.jsonl", b'{"prompt": "\xff"}\n')


def make_plugins(root: Path) -> None:
    text(root / "raises.py", "x = 1\n1 / 0\n")
    text(root / "exits.py", "import sys\nsys.exit(0)\n")
    text(root / "cancels.py", "import asyncio\nraise asyncio.CancelledError('stopped')\n")
    text(root / "syntax.py", "def f(:\n")
    text(root / "null.py", b"x = 1\x00\n")
    text(root / "no-utf8.py", b"x = '\xff'\n")
    text(root / "bare.py", "x = 1\n")
    text(root / "card.py", "class A:\n    card = 1\n")
    text(root / "kind.py", "class A:\n    card = {'kind': ['method']}\n")
    text(root / "keys.py", "class A:\n    card = {1: 2, 'kind': 'reward'}\n")
    rest = "'title': 'A', 'direction': 'higher', 'differentiable': False, 'scope': 'image'}\n    score = 1\n"
    text(root / "number.py", "class A:\n    card = {'kind': 'reward', 'name': 3, " + rest)
    text(root / "escapes.py", "class A:\n    card = {'kind': 'reward', 'name': '../x', " + rest)
    text(root / "words.txt", "no Python\n")
    slips: dict[str, str | bytes] = {
        "nested": "a = " + DEEP,
        "twice": CARD + 'title = "U"\n',
        "no-utf8": b"\xff\xfe",
        "unknown-key": CARD + "wat = 1\n",
        "dots": CARD + 'what = "prompts"\nfile = "../../x"\nsize = 1\n',
    }
    for name, content in slips.items():
        text(root / name / "assets" / "slip.toml", content)
        text(root / name / "protocols" / "slip.toml", content)


def make_records(root: Path) -> None:
    whole = RECORD.read_text()
    content = json.loads(whole)
    text(root / "whole" / "run.json", whole)
    text(root / "cut" / "run.json", whole[: len(whole) // 2])
    text(root / "nested" / "run.json", DEEP)
    text(root / "array" / "run.json", "[]")
    text(root / "no-utf8" / "run.json", b"\xff\xfe")
    text(root / "future" / "run.json", json.dumps({**content, "schema": 99}))
    text(root / "lacking" / "run.json", json.dumps({k: v for k, v in content.items() if k != "results"}))
    text(root / "typed" / "run.json", json.dumps({**content, "results": "none"}))
    (root / "hollow").mkdir()
    (root / "folder" / "run.json").mkdir(parents=True)
    text(root / "sweep.toml", "a = " + DEEP)
    text(root / "keys.toml", CARD + "wat = 1\n")


MAKERS = {
    "weights": make_weights, "samples": make_samples, "geneval": make_geneval, "data": make_data,
    "prompts": make_prompts, "plugins": make_plugins, "records": make_records,
}  # fmt: skip
"""{folder: what fills it}."""
