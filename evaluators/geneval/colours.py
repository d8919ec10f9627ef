"""GenEval's classifier of colours: zero-shot CLIP on what the mask cuts out of the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from alignbench.evaluators.geneval.rules import Detection
from alignbench.files import digest_of
from alignbench.hub.verify import AssetFile
from alignbench.nets import clip
from alignbench.nets.precision import full_precision
from alignbench.registry.schema import Scalar

VERSION = 1
"""Of this file's arithmetic; part of the identity."""
ASSET = "clip-vit-l-14-openai"
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
TEMPLATES = (
    "a photo of a {colour} {name}",
    "a photo of a {colour}-colored {name}",
    "a photo of a {colour} object",
)
BACKGROUND = 0x99
"""Grey level of all that the mask leaves out, CSS #999 (option `bgcolor`)."""


class ClipColours:
    """Takes the colour whose text lies nearest to the picture; a `detectors.Colours`."""

    # Deviation: float32, and OpenAI's QuickGELU as in the open_clip 2.20 that the official script pins. That
    # script runs under autocast, in half precision; only colours that are nearly tied can differ.

    names = COLOURS

    def __init__(self, model: clip.ClipModel, *, identity: str, device: torch.device) -> None:
        self.identity = digest_of({"colours": "clip", "version": VERSION, "weights": identity})
        self._model = model
        self._pictures = clip.pil_pictures(model)
        self._device = device
        self._network = model.network.to(device)
        self._texts: dict[str, Tensor] = {}

    @torch.no_grad()
    def classify(self, image: np.ndarray, objects: Sequence[Detection], class_name: str) -> list[str]:
        pictures = torch.cat([self._pictures(cut_out(image, item)) for item in objects]).to(self._device)
        with full_precision():
            seen = F.normalize(self._network.encode_image(pictures), dim=-1)
        best = (seen @ self._embeddings(class_name).T).argmax(dim=1)
        return [COLOURS[index] for index in best.tolist()]

    def _embeddings(self, class_name: str) -> Tensor:
        """[colours, D]: for each colour the mean of its templates' unit vectors, of unit length again."""
        if class_name not in self._texts:
            texts = [form.format(colour=c, name=class_name) for c in COLOURS for form in TEMPLATES]
            encoded = self._network.encode_text(self._model.tokenizer(texts).to(self._device))
            by_colour = F.normalize(encoded, dim=-1).unflatten(0, (len(COLOURS), len(TEMPLATES)))
            self._texts[class_name] = F.normalize(by_colour.mean(dim=1), dim=-1)
        return self._texts[class_name]


def cut_out(image: np.ndarray, item: Detection) -> Tensor:
    """Return the object on grey, cropped to its box, of an image [H, W, 3] uint8 RGB: [1, 3, h, w] uint8.

    Black where the box leaves the image. Without a mask the whole box is returned, as the official script
    does for detectors that give boxes only.
    """
    pixels = image if item.mask is None else np.where(item.mask[..., None], image, np.uint8(BACKGROUND))
    crop = np.array(Image.fromarray(np.ascontiguousarray(pixels)).crop(item.box))
    return torch.from_numpy(crop).permute(2, 0, 1)[None]


def build(
    *, options: Mapping[str, Scalar], assets: Mapping[str, AssetFile], device: torch.device
) -> ClipColours:
    """Build GenEval's own classifier.

    Raises:
        UserError: open_clip is not installed, or the file does not fit the architecture.
    """
    file, architecture = assets[ASSET], str(options["clip"])
    model = clip.load(file.path, architecture)
    return ClipColours(model, identity=f"{architecture} {file.sha256}", device=device)
