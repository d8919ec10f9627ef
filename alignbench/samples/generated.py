"""From a protocol to sample sets: shards of tokens with fixed image ids, made once and kept.

Image `i` of sampling seed `s` has its own class and its own random numbers, whatever the batch size, the
number of devices and the model: two models sampled with one seed differ in nothing but the model. Tokens
are kept, not pixels; decoding them again gives the same images.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from alignbench import randomness
from alignbench.api import Backbone, ClassLabels, Condition, ImageBatch, Prompt, Rollout
from alignbench.errors import RunFailed, out_of_memory_as, smaller_batch
from alignbench.files import write_atomic
from alignbench.registry.protocol import ProtocolCard, Setting
from alignbench.samples.npz import UNREADABLE
from alignbench.samples.pixels import resize_bicubic, to_uint8
from alignbench.samples.real import shards


def labels_of(protocol: ProtocolCard, num_classes: int, seed: int, ids: Sequence[int]) -> np.ndarray:
    """Return the class of each image id, or the number of its prompt, [n] int64, by the protocol's rule."""
    if protocol.labels == "prompts":
        return np.asarray(ids, dtype=np.int64) // protocol.images_per_prompt
    if protocol.labels == "balanced":
        return np.asarray(ids, dtype=np.int64) % num_classes
    draws = randomness.uniforms(seed, "sample-label", 0, ids, ())
    return np.minimum((draws * num_classes).astype(np.int64), num_classes - 1)


@dataclass(frozen=True)
class Sampler:
    """Generates a backbone's images under a protocol."""

    backbone: Backbone
    """With its policy in the protocol's precision."""
    protocol: ProtocolCard
    num_classes: int
    """That labels are drawn from; of no use with prompts."""
    device: torch.device
    prompts: Sequence[Prompt] = ()
    """Of a text protocol."""

    def generate(self, setting: Setting, seed: int, ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return (tokens [n, T] int32, labels [n] int64) of some image ids.

        Ids are padded to whole batches so that every forward has the same shape.
        """
        batch = self.protocol.batch
        padded = list(ids) + [ids[-1]] * (-len(ids) % batch)
        labels = labels_of(self.protocol, self.num_classes, seed, padded)
        uniforms = randomness.uniforms(seed, "sample-token", 0, padded, (self.backbone.num_tokens,))
        tokens = []
        for start in range(0, len(padded), batch):
            rows = slice(start, start + batch)
            drawn = self.backbone.generate(
                self.condition(labels[rows]),
                torch.from_numpy(uniforms[rows]).to(self.device),
                setting.sampling(),
            )
            check_probabilities(drawn)
            tokens.append(drawn.tokens.cpu().numpy().astype(np.int32))
        return np.concatenate(tokens)[: len(ids)], labels[: len(ids)]

    def prompts_of(self, labels: np.ndarray) -> list[Prompt]:
        """Return the prompt of each image; empty for class-conditional protocols."""
        return [self.prompts[number] for number in labels] if self.prompts else []

    def condition(self, labels: np.ndarray) -> Condition:
        """Return the conditions of classes or prompt numbers, [n] int64, on the device."""
        if self.protocol.labels == "prompts":
            return self.backbone.text_condition([prompt.text for prompt in self.prompts_of(labels)])
        return ClassLabels(torch.from_numpy(labels).to(self.device))

    def shards(self) -> list[range]:
        """Image ids of every file."""
        return shards(self.protocol.samples, self.protocol.batch)


def check_probabilities(drawn: Rollout) -> None:
    """Raise RunFailed if tokens come of probabilities that are not numbers: they would look like others."""
    if drawn.logprobs.isnan().any():
        raise RunFailed(
            "the model's token probabilities are not numbers",
            fix="its weights are broken or overflow: train again with a lower train.lr, or check the files",
        )


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.npz"


def read_shard(path: Path, key: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Return (tokens, labels) of one file; None if it is absent, damaged or of other images."""
    try:
        with np.load(path) as shard:
            return (shard["tokens"], shard["labels"]) if str(shard["key"]) == key else None
    except UNREADABLE:
        return None


@dataclass(frozen=True)
class ImageDecoder:
    """Tokens to the 8-bit images a protocol scores."""

    backbone: Backbone
    protocol: ProtocolCard
    device: torch.device

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """[n, T] int64 tokens → uint8 [n, 3, H, W] on the CPU."""
        pieces = []
        for piece in tokens.split(self.protocol.batch):
            images = self.backbone.tokenizer.decode(piece.to(self.device), self.backbone.grid)
            if self.protocol.resize == "bicubic":
                images = resize_bicubic(images, self.protocol.image_size)
            pieces.append(to_uint8(images, self.protocol.rounding).cpu())
        return torch.cat(pieces)


@dataclass(eq=False)
class TokenImages:
    """The images of one setting and seed, generated shard by shard and kept as tokens (an `api.ImageSet`)."""

    sampler: Sampler
    """Generates the tokens of shards that are not in the folder yet."""
    decoder: ImageDecoder
    folder: Path
    setting: Setting
    seed: int
    identity: str
    """Of the weights and of everything else that decides the images."""

    def __len__(self) -> int:
        return self.sampler.protocol.samples

    def shards(self) -> list[range]:
        return self.sampler.shards()

    def load(self, number: int) -> ImageBatch:
        """Return one shard at the protocol's size; tokens that no whole file holds are generated.

        Raises:
            RunFailed: the model's probabilities are not numbers, or out of memory.
        """
        path, ids = shard_path(self.folder, number), self.shards()[number]
        batch = self.sampler.protocol.batch
        with out_of_memory_as(
            f"out of memory while generating {batch} images together", smaller_batch(batch)
        ):
            made = read_shard(path, self.identity)
            if made is None:
                made = self.sampler.generate(self.setting, self.seed, ids)
                key, numbers, buffer = np.array(self.identity), np.asarray(ids), io.BytesIO()
                np.savez_compressed(buffer, key=key, ids=numbers, tokens=made[0], labels=made[1])
                write_atomic(path, buffer.getvalue())
            tokens, labels = made
            images = self.decoder.decode(torch.from_numpy(tokens).long())
        prompts = self.sampler.prompts_of(labels)
        classes = None if prompts else torch.from_numpy(labels)
        return ImageBatch(ids=ids, images=images, labels=classes, prompts=prompts)
