"""How well images match their prompts: the cosine under a CLIP-like model. What CLIP score and HPS share."""

from __future__ import annotations

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
"""Of the arithmetic here and in the two evaluators."""
NEUTRAL = ("batch",)
"""Options that change no row."""


class PromptMatch:
    """Mean cosine between images and their prompts.

    The card names one asset, the network, and the metrics: one for the mean, and the same with
    `-truncated`. Its options are prefix, scale, batch and whatever decides the network, which open_clip
    calls `architecture`.

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
        (self.metric,) = (name for name, fact in card.metrics.items() if not fact.detail)
        (file,) = assets.values()
        self.model, self.device = clip.load(file.path, architecture), device
        self.pictures = prepare(self.model)
        self.network = self.model.network.to(device)
        self.prefix, self.scale = str(options["prefix"]), float(options["scale"])
        self.batch = int(options["batch"])
        self.identity = digest_of(
            {
                "version": VERSION,
                "target": card.target,
                "options": {key: value for key, value in options.items() if key not in NEUTRAL},
                "assets": {name: file.sha256 for name, file in assets.items()},
            }
        )

    @torch.no_grad()
    def measure(self, batch: ImageBatch) -> dict[str, np.ndarray]:
        """Return `score` [n] float64, scale times the cosine, and `truncated` [n] bool.

        Raises:
            UserError: images without prompts.
        """
        if len(batch.prompts) != len(batch):
            raise UserError(f"{self.metric} compares images with their prompts; these have none")
        texts = [self._text(prompt) for prompt in batch.prompts]
        different = list(dict.fromkeys(texts))
        parts = [different[start : start + self.batch] for start in range(0, len(different), self.batch)]
        read = torch.cat([self._embed_texts(part) for part in parts])
        which = torch.tensor([different.index(text) for text in texts], device=self.device)
        seen = torch.cat([self._embed_images(part) for part in batch.images.split(self.batch)])
        cosine = (seen * read[which]).sum(dim=-1).double()
        return {
            "score": (self.scale * cosine).cpu().numpy(),
            "truncated": np.array([self.model.is_cut(text) for text in texts], dtype=bool),
        }

    def score(self, samples: Measured, reference: Reference | None) -> list[Metric]:
        """Return the mean with the interval over prompts, and the number of images whose prompt was cut."""
        values = samples.column("score")
        interval = resampled_interval(values, samples.column(PROMPT))
        truncated = float(samples.column("truncated").sum())
        return [
            Metric(self.metric, float(values.mean()), len(samples), interval=interval),
            Metric(f"{self.metric}-truncated", truncated, len(samples)),
        ]

    def _text(self, prompt: Prompt) -> str:
        return f"{self.prefix} {prompt.text}" if self.prefix else prompt.text

    def _embed_texts(self, texts: Sequence[str]) -> Tensor:
        tokens = self.model.tokenizer(list(texts)).to(self.device)
        return F.normalize(self.network.encode_text(tokens), dim=-1)

    def _embed_images(self, images: Tensor) -> Tensor:
        with full_precision():
            seen = self.network.encode_image(self.pictures(images).to(self.device))
        return F.normalize(seen, dim=-1)
