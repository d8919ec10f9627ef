"""The tokenizer: shapes, gradients, the quantiser's arithmetic, golden numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from alignbench.api import Tokenizer
from alignbench.backbones.llamagen.vq import Quantizer, VQConfig, VQModel

DATA = Path(__file__).parents[1] / "golden" / "llamagen"
TINY = VQConfig(
    base_channels=12, multipliers=(1, 2), res_blocks=1, z_channels=10, codebook_size=16, code_dim=4,
    entropy_ratio=0.1, usage_window=64,
)  # fmt: skip


@pytest.fixture
def vq() -> VQModel:
    torch.manual_seed(0)
    return VQModel(TINY).eval()


def wide_images(rows: int = 2) -> torch.Tensor:
    """Images of 8 by 12 pixels: 4 by 6 tokens."""
    generator = torch.Generator().manual_seed(1)
    return torch.rand(rows, 3, 8, 12, generator=generator) * 2 - 1


def test_golden_images_and_codes() -> None:
    expected = load_file(DATA / "vq_io.safetensors")
    config = VQConfig(base_channels=32, multipliers=(1, 2, 1), z_channels=48, codebook_size=256)
    golden = VQModel(config).eval()
    golden.load_state_dict(load_file(DATA / "vq_weights.safetensors"))
    assert torch.equal(golden.encode(expected["image"]).flatten(), expected["indices"])
    decoded = golden.decode(expected["codes"], (8, 8))
    torch.testing.assert_close(decoded, expected["codes_decoded"], rtol=0, atol=5e-5)


def test_wide_images_go_through_in_raster_order(vq: VQModel) -> None:
    assert isinstance(vq, Tokenizer)
    images = wide_images()
    tokens = vq.encode(images)
    assert tokens.shape == (2, 24) and tokens.dtype == torch.int64
    assert vq.decode(tokens, (4, 6)).shape == images.shape
    latent = F.normalize(vq.latent(images), dim=1)
    # Raster order: token 8 is row 1, column 2.
    cosine = latent[:, :, 1, 2] @ vq.codebook().T
    assert torch.equal(tokens[:, 8], cosine.argmax(dim=-1))


def test_tokens_and_their_vectors_decode_to_the_same_image(vq: VQModel) -> None:
    tokens = torch.randint(16, (2, 24), generator=torch.Generator().manual_seed(2))
    from_vectors = vq.decode_embeddings(vq.codebook()[tokens], (4, 6))
    assert torch.equal(vq.decode(tokens, (4, 6)), from_vectors)
    assert not torch.allclose(from_vectors, vq.decode(tokens.flip(1), (4, 6)))


def test_codebook_rows_have_unit_length_however_they_are_stored(vq: VQModel) -> None:
    before = vq.encode(wide_images())
    with torch.no_grad():
        vq.quantize.embedding.weight.mul_(torch.linspace(0.5, 3.0, 16)[:, None])
    torch.testing.assert_close(vq.codebook().norm(dim=-1), torch.ones(16))
    assert torch.equal(vq.encode(wide_images()), before)


def test_gradient_flows_through_decode_embeddings(vq: VQModel) -> None:
    vectors = vq.codebook()[torch.zeros(1, 24, dtype=torch.int64)].detach().double().requires_grad_()
    vq = vq.double()
    direction = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def energy(x: torch.Tensor) -> torch.Tensor:
        return vq.decode_embeddings(x, (4, 6)).square().mean()

    (gradient,) = torch.autograd.grad(energy(vectors), vectors)
    step = 1e-6
    with torch.no_grad():
        slope = (energy(vectors + step * direction) - energy(vectors - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-6, atol=1e-12)
    assert float(slope.abs()) > 1e-6


def test_trainable_decoder_is_everything_behind_the_codes(vq: VQModel) -> None:
    module = vq.trainable_decoder()
    inside = {id(parameter) for parameter in module.parameters()}
    names = {name.split(".")[0] for name, value in vq.named_parameters() if id(value) in inside}
    assert names == {"decoder", "post_quant_conv"}
    vectors = vq.codebook()[torch.arange(24)[None] % 16]
    grid_map = vectors.transpose(1, 2).unflatten(-1, (4, 6))
    assert torch.equal(module(grid_map), vq.decode_embeddings(vectors, (4, 6)))
    assert not any(key.startswith("trainable") for key in vq.state_dict())


def test_training_losses_by_definition() -> None:
    torch.manual_seed(0)
    quantizer = Quantizer(TINY).double()
    latent = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    result = quantizer(latent)
    z = F.normalize(latent.permute(0, 2, 3, 1).reshape(-1, 4), dim=-1)
    codes = F.normalize(quantizer.embedding.weight, dim=-1)
    distance = (z[:, None] - codes).square().sum(-1)
    nearest = codes[distance.argmin(-1)]
    assert torch.equal(result.tokens.flatten(), distance.argmin(-1))
    torch.testing.assert_close(result.codebook_loss, (nearest - z).square().mean())
    torch.testing.assert_close(result.commitment_loss, 0.25 * (nearest - z).square().mean())
    soft = (-distance / 0.01).softmax(-1)
    entropy = -(soft * soft.clamp(min=1e-300).log()).sum(-1).mean()
    mean = soft.mean(0)
    expected = 0.1 * (entropy + (mean * (mean + 1e-5).log()).sum())
    torch.testing.assert_close(result.entropy_loss, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(result.embeddings.permute(0, 2, 3, 1).reshape(-1, 4), nearest)


def test_each_loss_trains_its_own_side() -> None:
    torch.manual_seed(0)
    quantizer = Quantizer(TINY)
    latent = torch.randn(1, 4, 2, 3, requires_grad=True)
    result = quantizer(latent)
    weight = quantizer.embedding.weight
    for loss, side, other in (
        (result.codebook_loss, weight, latent),
        (result.commitment_loss, latent, weight),
        (result.embeddings.sum(), latent, weight),
    ):
        own, foreign = torch.autograd.grad(loss, (side, other), retain_graph=True, allow_unused=True)
        assert own.abs().sum() > 0
        assert foreign is None or not foreign.any()


def test_usage_counts_distinct_codes_in_a_sliding_window() -> None:
    quantizer = Quantizer(replace(TINY, usage_window=6))
    assert float(quantizer.record_usage(torch.tensor([[3, 3, 5]]))) == pytest.approx(3 / 16)
    assert quantizer.codebook_used.tolist() == [0, 0, 0, 3, 3, 5]
    assert float(quantizer.record_usage(torch.tensor([7, 7, 7, 7]))) == pytest.approx(3 / 16)
    assert quantizer.codebook_used.tolist() == [3, 5, 7, 7, 7, 7]
    assert float(quantizer.record_usage(torch.arange(9))) == pytest.approx(6 / 16)
    assert not quantizer.codebook_used.requires_grad


def test_half_precision_keeps_the_quantiser_in_float32(vq: VQModel) -> None:
    latent = torch.randn(1, 4, 2, 3, generator=torch.Generator().manual_seed(4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = vq.quantize(latent)
        images = vq.decode(cast.tokens, (2, 3))
    plain = vq.quantize(latent)
    assert cast.embeddings.dtype == torch.float32 and images.dtype == torch.float32
    assert torch.equal(cast.embeddings, plain.embeddings) and torch.equal(cast.tokens, plain.tokens)


def test_training_steps_lower_the_reconstruction_error() -> None:
    torch.manual_seed(0)
    vq = VQModel(TINY)
    images = wide_images(8)
    optimizer = torch.optim.Adam(vq.parameters(), lr=3e-3)
    errors = []
    for _ in range(30):
        reconstruction, codebook, commitment, entropy, usage = vq.train_losses(images)
        error = (reconstruction - images).square().mean()
        optimizer.zero_grad()
        (error + codebook + commitment + entropy).backward()
        optimizer.step()
        errors.append(float(error.detach()))
        assert 0 < float(usage) <= 1
    assert errors[-1] < 0.8 * errors[0]
