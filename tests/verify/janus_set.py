"""A golden set of a tiny Janus in the form that `alignbench.verify.janus` checks.

Every number comes from transformers or numpy, one prompt at a time and without padding: attention written
out, generation without any cache.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from tests.helpers.janus_toys import CODES, SIZE, SPECIAL, TOKENS, processor, write_hub_folder

CAPTIONS = ("a cat", "  two red cubes on a table ", "")


@torch.no_grad()
def image_logits(model: Any, ids: Tensor, tokens: Tensor) -> Tensor:
    """Logits [len(tokens) + 1, V] behind one unpadded prompt [S], no cache."""
    parts = model.model
    image = parts.generation_aligner(parts.generation_embeddings(tokens))
    embeddings = torch.cat([parts.language_model.embed_tokens(ids), image])[None]
    states = parts.language_model(inputs_embeds=embeddings, use_cache=False).last_hidden_state[0]
    logits: Tensor = parts.generation_head(states[len(ids) - 1 :])
    return logits


def unconditional(ids: Tensor) -> Tensor:
    return torch.cat([ids[:1], torch.full_like(ids[1:-1], 2), ids[-1:]])


def greedy(model: Any, ids: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The most likely tokens [T] and their logits [T, V], recomputed from the start for each token."""
    tokens, kept = torch.empty(0, dtype=torch.int64), []
    for _ in range(TOKENS):
        logits = image_logits(model, ids, tokens)[-1]
        if scale != 1:
            null = image_logits(model, unconditional(ids), tokens)[-1]
            logits = null + scale * (logits - null)
        kept.append(logits)
        tokens = torch.cat([tokens, logits.argmax()[None]])
    return tokens, torch.stack(kept)


def nearest_codes(model: Any, latent: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [B, T] of the nearest direction, in numpy and float64, and unit vectors [B, 8, h, w]."""
    rows = model.model.vqmodel.quantize.embedding.weight.detach().double().numpy()
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    points = latent.double().permute(0, 2, 3, 1).numpy()
    points = points / np.linalg.norm(points, axis=-1, keepdims=True)
    ids = (points @ rows.T).argmax(axis=-1)
    return torch.from_numpy(ids).flatten(1), torch.from_numpy(rows[ids]).permute(0, 3, 1, 2).float()


def write_golden(folder: Path, model: Any) -> Path:
    write_hub_folder(folder, model)
    model.set_attn_implementation("eager")
    processed = processor()
    talks = [[{"role": "user", "content": [{"type": "text", "text": text.strip()}]}] for text in CAPTIONS]
    formatted = [processed.apply_chat_template(talk, tokenize=False) for talk in talks]
    encoded = processed(text=formatted, generation_mode="image", padding=True, return_tensors="pt")
    ids, mask = encoded["input_ids"], encoded["attention_mask"]
    rows = [row[keep.bool()] for row, keep in zip(ids, mask, strict=True)]
    numbers = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (len(rows), 3, SIZE, SIZE), generator=numbers)
    image = pixels / 127.5 - 1
    vq = model.model.vqmodel
    with torch.no_grad():
        latent = vq.quant_conv(vq.encoder(image))
    codes, vectors = nearest_codes(model, latent)
    drawn = torch.rand(codes.shape, generator=numbers) < 0.4
    corrupted = codes.where(~drawn, torch.randint(0, CODES, codes.shape, generator=numbers))
    null_ids = ids.clone()
    for row, keep in zip(null_ids, mask.bool(), strict=True):
        row[keep] = unconditional(row[keep])
    expected: dict[str, Tensor] = {
        "vq_latent": latent, "vq_ids": codes, "vq_code_vectors": vectors,
        "vq_ids_unnormalised": vq.encode(image).image_tokens.view(codes.shape),
        "recon_pixels": vq.decode(codes), **_gradients(vq, latent, vectors, image),
    }  # fmt: skip
    for name, tokens in {"clean": codes, "corrupt": corrupted}.items():
        pairs = list(zip(rows, tokens, strict=True))
        cond = torch.stack([image_logits(model, row, row_tokens[:-1]) for row, row_tokens in pairs])
        null = torch.stack([image_logits(model, unconditional(row), t[:-1]) for row, t in pairs])
        expected |= {f"tf_logits_cond_{name}": cond, f"tf_logits_uncond_{name}": null}
        expected[f"tf_logits_cfg5_{name}"] = null + 5 * (cond - null)
        chosen = cond.log_softmax(-1).gather(-1, codes[..., None])[..., 0]
        expected[f"tf_logp_clean_targets_cond_{name}"] = chosen
    for scale in (1, 5):
        drawn_rows = [greedy(model, row, scale) for row in rows]
        expected[f"greedy_ids_cfg{scale}"] = torch.stack([tokens for tokens, _ in drawn_rows])
        expected[f"greedy_step_logits_cfg{scale}"] = torch.stack([logits for _, logits in drawn_rows])
    decoded = vq.decode(expected["greedy_ids_cfg5"])
    expected["decoded_pixels"] = decoded
    expected["decoded_u8"] = ((decoded + 1) * 127.5).clamp(0, 255).byte().permute(0, 2, 3, 1)
    inputs = {
        "image_u8": pixels.byte(), "image": image, "prompt_ids": ids, "prompt_mask": mask,
        "uncond_prompt_ids": null_ids, "corrupt_mask": drawn, "corrupted_ids": corrupted,
    }  # fmt: skip
    save_file({key: _plain(value) for key, value in inputs.items()}, folder / "inputs.safetensors")
    save_file({key: _plain(value) for key, value in expected.items()}, folder / "expected.safetensors")
    tag = SPECIAL["boi_token"]
    meta = {"prompt_texts": CAPTIONS, "formatted_prompts": [text + tag for text in formatted]}
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    return folder


def _gradients(vq: Any, latent: Tensor, vectors: Tensor, image: Tensor) -> dict[str, Tensor]:
    """Of the mean squared error, by transformers' decoder; the straight-through one by the chain rule."""
    leaf = vectors.clone().requires_grad_()
    loss = F.mse_loss(vq.decoder(vq.post_quant_conv(leaf)), image)
    gradient = torch.autograd.grad(loss, leaf)[0]
    length = latent.norm(dim=1, keepdim=True)
    unit = latent / length
    through = (gradient - unit * (unit * gradient).sum(dim=1, keepdim=True)) / length
    return {"recon_mse_grad_code_vectors": gradient, "ste_grad_vq_latent": through}


def _plain(value: Tensor) -> Tensor:
    value = value.detach()
    return (value.int() if value.dtype in (torch.int64, torch.bool) else value).contiguous()
