"""How well images match their prompts, by a frozen network: what CLIP score, HPS and their kin share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from alignbench.api import PROMPT, ImageBatch, Measured, Metric, Prompt, Reference
from alignbench.errors import UserError
from alignbench.files import digest_of
from alignbench.hub.verify import AssetFile
from alignbench.metrics.clusters import resampled_interval
from alignbench.nets import clip
from alignbench.nets.precision import full_precision
from alignbench.registry.protocol import EvaluatorCard
from alignbench.registry.schema import Scalar

VERSION = 1
"""Of the arithmetic here and in the evaluators."""
NEUTRAL = ("batch",)
"""Options that change no row."""


class PromptScore(ABC):
    """Mean score of images against their prompts by a frozen network: `values` says how.

    The card names one metric for the mean, and the same with `-truncated` if prompts can be too long.
    """

    def __init__(
        self, card: EvaluatorCard, *, options: Mapping[str, Scalar], assets: Mapping[str, AssetFile]
    ) -> None:
        (self.metric,) = (name for name, fact in card.metrics.items() if not fact.detail)
        self.cuts = f"{self.metric}-truncated" in card.metrics
        self.identity = digest_of(
            {
                "version": VERSION,
                "target": card.target,
                "options": {key: value for key, value in options.items() if key not in NEUTRAL},
                "assets": {name: file.sha256 for name, file in assets.items()},
            }
        )

    @abstractmethod
    def values(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """[n, 3, H, W] uint8 on the CPU and n texts → [n] scores, each whatever is around it."""

    def is_cut(self, text: str) -> bool:
        """Whether the network reads only the beginning of the text."""
        return False

    @torch.no_grad()
    def measure(self, batch: ImageBatch) -> dict[str, np.ndarray]:
        """Return `score` [n] float64 and, of networks that cut prompts, `truncated` [n] bool.

        Raises:
            UserError: images without prompts.
        """
        if len(batch.prompts) != len(batch):
            raise UserError(f"{self.metric} compares images with their prompts; these have none")
        texts = [self.text(prompt) for prompt in batch.prompts]
        rows = {"score": self.values(batch.images, texts).double().cpu().numpy()}
        if self.cuts:
            rows["truncated"] = np.array([self.is_cut(text) for text in texts], dtype=bool)
        return rows

    def score(self, samples: Measured, reference: Reference | None) -> list[Metric]:
        """Return the mean with the interval over prompts, and the number of images whose prompt was cut."""
        values = samples.column("score")
        interval = resampled_interval(values, samples.column(PROMPT))
        metrics = [Metric(self.metric, float(values.mean()), len(samples), interval=interval)]
        if self.cuts:
            truncated = float(samples.column("truncated").sum())
            metrics.append(Metric(f"{self.metric}-truncated", truncated, len(samples)))
        return metrics

    def text(self, prompt: Prompt) -> str:
        """What the network reads of a prompt."""
        return prompt.text


class PromptMatch(PromptScore):
    """Mean cosine between images and their prompts under a model of open_clip.

    The card's one asset is the network. Its options are prefix, scale, batch and whatever decides the
    network, which open_clip calls `architecture`.

    Raises:
        UserError: open_clip is not installed, or the file does not fit the architecture.
    """

    def __init__(
        self,
        card: EvaluatorCard,
        architecture: str,
        prepare: Callable[[clip.ClipModel], clip.Pictures],
        *,
        options: Mapping[str, Scalar],
        assets: Mapping[str, AssetFile],
        device: torch.device,
    ) -> None:
        super().__init__(card, options=options, assets=assets)
        (file,) = assets.values()
        self.model, self.device = clip.load(file.path, architecture), device
        self.pictures = prepare(self.model)
        self.network = self.model.network.to(device)
        self.prefix, self.scale = str(options["prefix"]), float(options["scale"])
        self.batch = int(options["batch"])

    def values(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """Return scale times the cosine."""
        different = list(dict.fromkeys(texts))
        parts = [different[start : start + self.batch] for start in range(0, len(different), self.batch)]
        read = torch.cat([self._embed_texts(part) for part in parts])
        which = torch.tensor([different.index(text) for text in texts], device=self.device)
        seen = torch.cat([self._embed_images(part) for part in images.split(self.batch)])
        return self.scale * (seen * read[which]).sum(dim=-1).double()

    def is_cut(self, text: str) -> bool:
        return self.model.is_cut(text)

    def text(self, prompt: Prompt) -> str:
        return f"{self.prefix} {prompt.text}" if self.prefix else prompt.text

    def _embed_texts(self, texts: Sequence[str]) -> Tensor:
        tokens = self.model.tokenizer(list(texts)).to(self.device)
        return F.normalize(self.network.encode_text(tokens), dim=-1)

    def _embed_images(self, images: Tensor) -> Tensor:
        with full_precision():
            seen = self.network.encode_image(self.pictures(images).to(self.device))
        return F.normalize(seen, dim=-1)
