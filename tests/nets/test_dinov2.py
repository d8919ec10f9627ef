"""DINOv2 in both of its forms against Meta's program written down anew, on random weights of its form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from alignbench.errors import UserError
from alignbench.nets import dinov2

WIDTH, HEADS, BLOCKS = 128, 2, 2
CPU = torch.device("cpu")


def metas_weights() -> dict[str, Tensor]:
    """A state dict as in `dinov2_vitb14_pretrain.pth`, but small."""
    numbers = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        scale = float(shape[-1] if len(shape) > 1 else 9) ** -0.5
        return torch.randn(*shape, generator=numbers).mul(scale)

    state = {
        "cls_token": drawn(1, 1, WIDTH), "pos_embed": drawn(1, 1 + 37 * 37, WIDTH),
        "mask_token": drawn(1, WIDTH),
        "patch_embed.proj.weight": drawn(WIDTH, 3, 14, 14), "patch_embed.proj.bias": drawn(WIDTH),
        "norm.weight": 1 + drawn(WIDTH), "norm.bias": drawn(WIDTH),
    }  # fmt: skip
    sizes = {"attn.qkv": (3 * WIDTH, WIDTH), "attn.proj": (WIDTH, WIDTH)}
    sizes |= {"mlp.fc1": (4 * WIDTH, WIDTH), "mlp.fc2": (WIDTH, 4 * WIDTH)}
    for block in range(BLOCKS):
        for name in ("norm1", "norm2"):
            state[f"blocks.{block}.{name}.weight"] = 1 + drawn(WIDTH)
            state[f"blocks.{block}.{name}.bias"] = drawn(WIDTH)
        for name, size in sizes.items():
            state[f"blocks.{block}.{name}.weight"] = drawn(*size)
            state[f"blocks.{block}.{name}.bias"] = drawn(size[0])
        state |= {f"blocks.{block}.ls{number}.gamma": drawn(WIDTH) for number in (1, 2)}
    return state


def metas_features(state: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """Meta's forward pass in float64: the class token after the last normalisation."""
    w = {name: value.double() for name, value in state.items()}

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def normal(x: Tensor, name: str) -> Tensor:
        spread = (x.var(dim=-1, keepdim=True, correction=0) + 1e-6).sqrt()
        return (x - x.mean(dim=-1, keepdim=True)) / spread * w[f"{name}.weight"] + w[f"{name}.bias"]

    patches = F.conv2d(pixels.double(), w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=14)
    x = torch.cat([w["cls_token"].expand(len(pixels), 1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
    x = x + metas_positions(w["pos_embed"])
    for block in (f"blocks.{number}" for number in range(BLOCKS)):
        qkv = linear(normal(x, f"{block}.norm1"), f"{block}.attn.qkv")
        q, k, v = qkv.unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        seen = ((q @ k.transpose(2, 3)) / 8).softmax(dim=3) @ v
        x = x + w[f"{block}.ls1.gamma"] * linear(seen.transpose(1, 2).flatten(2), f"{block}.attn.proj")
        inner = F.gelu(linear(normal(x, f"{block}.norm2"), f"{block}.mlp.fc1"))
        x = x + w[f"{block}.ls2.gamma"] * linear(inner, f"{block}.mlp.fc2")
    return normal(x[:, 0], "norm")


def metas_positions(embeddings: Tensor) -> Tensor:
    """Cubic convolution (a = −0.75) of 37 cells at (i + ½)·37/16.1 − ½, as a matrix along either axis."""
    matrix = np.zeros((16, 37))
    for row in range(16):
        at = (row + 0.5) * 37 / 16.1 - 0.5
        for cell in range(int(np.floor(at)) - 1, int(np.floor(at)) + 3):
            x, a = abs(at - cell), -0.75
            near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
            matrix[row, min(max(cell, 0), 36)] += near if x <= 1 else far
    grid = embeddings[0, 1:].double().numpy().reshape(37, 37, -1)
    turned = np.einsum("ai,bj,ijd->abd", matrix, matrix, grid).reshape(1, 256, -1)
    return torch.cat([embeddings[:, :1].double(), torch.from_numpy(turned)], dim=1)


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dinov2") / "dinov2_vitt14_pretrain.pth"
    torch.save(metas_weights(), path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights as transformers saves them."""
    import transformers

    library: Any = transformers
    state = metas_weights()
    network = library.Dinov2Model.from_pretrained(
        None, config=dinov2.config_of(state), state_dict=dict(dinov2.renamed(state))
    )
    path = tmp_path_factory.mktemp("hub")
    network.save_pretrained(path)
    return path


def images() -> Tensor:
    numbers = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, 3, 40, 56), generator=numbers, dtype=torch.uint8)


def test_both_forms_give_metas_features(official: Path, folder: Path) -> None:
    expected = metas_features(metas_weights(), dinov2.pictures(images()))
    for path in (official, folder):
        found = dinov2.load(path, CPU).features(images())
        assert found.dtype == torch.float32 and found.shape == (2, WIDTH)
        assert found.double().numpy() == pytest.approx(expected.numpy(), abs=2e-4)
    apart = (expected[0] - expected[1]).abs().max()
    assert apart > 0.1, "the two images must differ by more than the bound"


def test_transformers_own_positions_are_others(folder: Path) -> None:
    """Why they are stretched here: 16/37 in place of 16.1/37 samples the embeddings elsewhere."""
    import transformers

    library: Any = transformers
    network = library.Dinov2Model.from_pretrained(folder).eval()
    stretched = dinov2.stretch(network.embeddings.position_embeddings.detach())
    official = metas_positions(metas_weights()["pos_embed"])
    assert stretched.double().numpy() == pytest.approx(official.numpy(), abs=1e-5)
    whole = torch.zeros(1, 257, WIDTH)
    theirs = network.embeddings.interpolate_pos_encoding(whole, 224, 224).detach()
    assert (stretched - theirs).abs().max() > 0.01
    pixels = dinov2.pictures(images())
    with torch.no_grad():
        features = network(pixel_values=pixels).last_hidden_state[:, 0]
    assert (features - dinov2.load(folder, CPU).features(images())).abs().max() > 1e-3


def test_pictures_are_those_of_torchvisions_transform() -> None:
    """dgm-eval: Resize((224, 224), BICUBIC) on a PIL image, ToTensor, Normalize."""
    from torchvision import transforms

    library: Any = transforms
    prepare = library.Compose([
        library.Resize((224, 224), library.InterpolationMode.BICUBIC),
        library.ToTensor(),
        library.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])  # fmt: skip
    expected = [prepare(Image.fromarray(one.permute(1, 2, 0).numpy())) for one in images()]
    assert torch.equal(dinov2.pictures(images()), torch.stack(expected))


def test_what_is_no_dinov2_is_refused(official: Path, tmp_path: Path) -> None:
    for number, (change, reason) in enumerate(
        (
            (lambda state: state.pop("norm.bias"), "layernorm.bias is missing"),
            (lambda state: state.update(register_tokens=torch.zeros(1, 4, WIDTH)), "register_tokens"),
            (lambda state: state.clear(), "patch_embed"),
        )
    ):
        state = metas_weights()
        change(state)
        path = tmp_path / f"{number}.pth"
        torch.save(state, path)
        with pytest.raises(UserError, match=reason):
            dinov2.load(path, CPU)
    (tmp_path / "broken.pth").write_bytes(official.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"holds no DINOv2: .* → alignbench fetch dinov2-large"):
        dinov2.load(tmp_path / "broken.pth", CPU)
