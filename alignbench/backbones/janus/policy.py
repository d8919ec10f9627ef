"""The image policy of Janus-Pro as one network: language model, image embedding, aligner and image head.

Shapes: N sequences, S prompt tokens, T image tokens, V codes, d width. The networks are transformers'; their
keys are those of the hub's form without the leading `model.`. The language model's own head and the
understanding tower are not part of it.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from alignbench.api import Condition
from alignbench.backbones.cuda_graphs import CachePosition
from alignbench.backbones.janus.cache import FixedPrompts, PromptCache
from alignbench.backbones.janus.prompts import PromptTokens
from alignbench.backbones.llamagen.transformer import at_least_float32
from alignbench.errors import UserError, suggest

INIT_STD = 0.02

Fidelity = Literal["exact", "as_released"]

PARTS = {
    "language_model": ("language_model.layers.", "language_model.norm."),
    "text_embedding": ("language_model.embed_tokens.",),
    "generation_embedding": ("generation_embeddings.",),
    "aligner": ("generation_aligner.",),
    "head": ("generation_head.",),
}
"""{part that can be trained or left alone: prefixes of its keys}."""


class JanusPolicy(nn.Module):
    """The policy: `(condition, context) → logits`.

    Args:
        pad: id of the padding token, which unconditional prompts are made of.
        fidelity: how `forward` aligns; see there. Generation is the same for both.
        trains: parts that `requires_grad_(True)` switches on, see `PARTS`; the others stay frozen.

    Raises:
        UserError: an unknown part or fidelity, or nothing to train.
    """

    def __init__(
        self,
        config: Any,
        *,
        pad: int,
        fidelity: Fidelity = "exact",
        trains: str | Sequence[str] = tuple(PARTS),
    ) -> None:
        from transformers import LlamaModel
        from transformers.models.janus.modeling_janus import JanusVQVAEAlignerMLP, JanusVQVAEHead

        super().__init__()
        if fidelity not in get_args(Fidelity):
            raise UserError(f"fidelity {fidelity!r} is not one of {', '.join(get_args(Fidelity))}")
        text = copy.deepcopy(config.text_config)
        # With a padding id the embedding keeps that row from training; unconditional prompts consist of it.
        text.pad_token_id = None
        self.pad = pad
        self.fidelity = fidelity
        self.trains = check_parts(trains)
        self.num_tokens = int(config.vq_config.num_patches) ** 2
        self.recompute = False
        """Recompute each layer in the backward pass instead of storing its activations."""
        self.language_model = LlamaModel(text)
        self.generation_embeddings = nn.Embedding(config.vq_config.num_embeddings, config.vq_config.embed_dim)
        self.generation_aligner = JanusVQVAEAlignerMLP(config.vq_config)
        self.generation_head = JanusVQVAEHead(config.vq_config)
        # Renamed in transformers 5.24, the old name goes in 5.40.
        names = inspect.signature(LlamaModel.forward).parameters
        self._cache_name = "cache" if "cache" in names else "past_key_values"

    @torch.no_grad()
    def initialise(self) -> None:
        """Draw fresh weights from torch's generator: N(0, 0.02²), norms 1, biases 0."""
        for name, parameter in self.named_parameters():
            if name.endswith(".bias"):
                parameter.zero_()
            elif parameter.dim() == 1:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, INIT_STD)

    def requires_grad_(self, requires_grad: bool = True) -> JanusPolicy:
        """Switch gradients of the parts that train on or off; the others are off either way."""
        prefixes = tuple(prefix for part in self.trains for prefix in PARTS[part])
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(requires_grad and name.startswith(prefixes))
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> JanusPolicy:
        """Move or cast as every module does, but keep the frequencies of the rotary positions in float32.

        They are a buffer: rounded to bfloat16, positions a few hundred tokens on would be turned by other
        angles.
        """
        super()._apply(fn, recurse)
        device = next(self.parameters()).device
        rotary = self.language_model.rotary_emb
        with torch.device(device):
            fresh = type(rotary)(config=self.language_model.config)
        for name, buffer in fresh.named_buffers():
            setattr(rotary, name, buffer)
        return self

    def shard_units(self) -> list[nn.Module]:
        return list(self.language_model.layers)

    # --- teacher forcing ---

    def forward(self, condition: Condition, context: Tensor) -> Tensor:
        """Teacher-forced logits of every next token.

        `exact`: entry t is read from the position before image token t (begin-of-image for t = 0), prompts
        are padded on the left and every sequence has its own positions.

        `as_released` repeats VA-π's released trainer: entry t is read from the position of image token t
        itself, so its logits know the token they score, and the state after begin-of-image is never used;
        prompts are padded on the right, between begin-of-image and the image tokens, and positions count
        the padding.

        Deviation: that trainer feeds all T tokens. With a context of T-1 tokens the last entry, whose own
        token is not known, comes from the position before it, as `exact` has it. T tokens give all T entries
        as released.

        Args:
            context: [N, L] int64, L ≤ T-1; up to T with `as_released`.

        Returns:
            [N, L+1, V] float32 (float64 for a float64 model), T entries at most.
        """
        prompts = _prompts(condition)
        if self.fidelity == "as_released":
            return self._as_released(prompts.right_padded(), context)
        count = context.shape[1]
        after = prompts.mask.sum(dim=1, keepdim=True) + torch.arange(count, device=context.device)
        positions = torch.cat([prompts.positions(), after], dim=1)
        states = self._states(prompts, context, positions)
        return self._score(states[:, prompts.ids.shape[1] - 1 :])

    def _as_released(self, prompts: PromptTokens, context: Tensor) -> Tensor:
        states = self._states(prompts, context, None)[:, prompts.ids.shape[1] - 1 :]
        if context.shape[1] == 0:
            return self._score(states)
        last = states[:, -1:] if context.shape[1] < self.num_tokens else states[:, :0]
        return self._score(torch.cat([states[:, 1:], last], dim=1))

    def _states(self, prompts: PromptTokens, context: Tensor, positions: Tensor | None) -> Tensor:
        """Hidden states of prompts followed by image tokens, [N, S+L, d]."""
        embeddings = torch.cat([self._embed_prompts(prompts), self._embed_image(context)], dim=1)
        mask = F.pad(prompts.mask, (0, context.shape[1]), value=True)
        with self._recomputing():
            out = self.language_model(
                inputs_embeds=embeddings, attention_mask=mask.long(), position_ids=positions, use_cache=False
            )
        states: Tensor = out.last_hidden_state
        return states

    @contextlib.contextmanager
    def _recomputing(self) -> Iterator[None]:
        """Let the layers drop their activations, if asked for.

        transformers recomputes in train mode only. There is no dropout in this model, so the mode of a layer
        decides nothing else; it is put back afterwards.
        """
        if not (self.recompute and torch.is_grad_enabled()):
            yield
            return
        layers: list[Any] = list(self.language_model.layers)
        modes = [layer.training for layer in layers]
        for layer in layers:
            layer.gradient_checkpointing, layer.training = True, True
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        try:
            yield
        finally:
            for layer, training in zip(layers, modes, strict=True):
                layer.gradient_checkpointing, layer.training = False, training

    # --- token by token ---

    def null(self, condition: Condition) -> PromptTokens:
        """Return as many unconditional prompts, for classifier-free guidance."""
        return _prompts(condition).null(self.pad)

    def cache_for(self, condition: Condition, count: int) -> list[PromptCache]:
        """Return an empty cache for drawing `count` tokens."""
        length = _prompts(condition).ids.shape[1] + count - 1
        return [PromptCache(self.language_model.config, length)]

    def prefill(self, condition: Condition, cache: Sequence[PromptCache]) -> Tensor:
        """Run prompts through the network and fill the cache; returns logits of token 0, [N, V]."""
        prompts = _prompts(condition)
        return self._advance(self._embed_prompts(prompts), prompts.mask, prompts.positions(), cache[0])

    def step(self, tokens: Tensor, condition: Condition, cache: Sequence[PromptCache]) -> Tensor:
        """Feed one token per sequence, [N]; returns logits of the next one, [N, V]."""
        prompts, fed = _prompts(condition), cache[0].fed
        cache[0].fed += 1
        mask = F.pad(prompts.mask, (0, fed + 1), value=True)
        positions = prompts.mask.sum(dim=1, keepdim=True) + fed
        return self._advance(self._embed_image(tokens[:, None]), mask, positions, cache[0])

    def fix(self, condition: Condition, cache: Sequence[PromptCache]) -> FixedPrompts:
        """See `cuda_graphs.FixedPolicy`; transformers' static cache keeps its own place on the device."""
        prompts, (filled,) = _prompts(condition), cache
        used = prompts.ids.shape[1] + filled.fed
        position = CachePosition.behind(used, filled.length, ~prompts.mask, prompts.ids.device)
        positions = prompts.mask.sum(dim=1, keepdim=True) + filled.fed
        return FixedPrompts(filled, position, positions)

    def fixed_step(self, tokens: Tensor, state: FixedPrompts) -> Tensor:
        embedded = self._embed_image(tokens[:, None])
        bias = state.position.bias(embedded.dtype)
        logits = self._advance(embedded, bias, state.positions, state.cache)
        state.position.advance()
        state.positions.add_(1)
        return logits

    def _advance(self, embeddings: Tensor, mask: Tensor, positions: Tensor, cache: PromptCache) -> Tensor:
        out = self.language_model(
            inputs_embeds=embeddings,
            attention_mask=mask if mask.dim() == 4 else mask.long(),
            position_ids=positions,
            use_cache=True,
            **{self._cache_name: cache.states},
        )
        return self._score(out.last_hidden_state[:, -1])

    # --- in and out ---

    def _embed_prompts(self, prompts: PromptTokens) -> Tensor:
        embedded: Tensor = self.language_model.embed_tokens(prompts.ids)
        return embedded

    def _embed_image(self, tokens: Tensor) -> Tensor:
        aligned: Tensor = self.generation_aligner(self.generation_embeddings(tokens))
        return aligned

    def _score(self, states: Tensor) -> Tensor:
        return at_least_float32(self.generation_head(states))


def check_parts(parts: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names of parts to train in the order of `PARTS`, each once; one text holds them with commas.

    Raises:
        UserError: an unknown name, or none.
    """
    if isinstance(parts, str):
        parts = [part.strip() for part in parts.split(",")]
    for part in parts:
        if part not in PARTS:
            raise UserError(
                f"{part!r} is no part of the Janus policy.{suggest(part, PARTS)}",
                fix=f"name some of {', '.join(PARTS)}",
            )
    if not parts:
        raise UserError("no part of the Janus policy would train", fix=f"name some of {', '.join(PARTS)}")
    return tuple(part for part in PARTS if part in parts)


def _prompts(condition: Condition) -> PromptTokens:
    if not isinstance(condition, PromptTokens):
        raise TypeError(f"Janus is conditioned on prompts, not on {type(condition).__name__}")
    return condition
