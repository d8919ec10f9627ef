"""CLIP score: cosine between image and prompt under an OpenAI CLIP model, by open_clip."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from alignbench.errors import UserError
from alignbench.evaluators.prompt_match import Pictures, PromptMatch
from alignbench.hub.verify import AssetFile
from alignbench.nets import clip
from alignbench.registry.protocol import EvaluatorCard
from alignbench.registry.schema import Scalar


def build(
    card: EvaluatorCard,
    *,
    options: Mapping[str, Scalar],
    assets: Mapping[str, AssetFile],
    device: torch.device,
) -> PromptMatch:
    """Build the evaluator; the card names one asset, the network.

    Raises:
        UserError: open_clip is not installed, or the file does not fit the architecture.
    """
    (name,) = card.assets
    model = clip.load(assets[name].path, str(options["architecture"]))
    return PromptMatch(card, model, pil_pictures(model), options=options, assets=assets, device=device)


def pil_pictures(model: clip.ClipModel) -> Pictures:
    """Prepare images as open_clip does: through PIL, bicubic on 8 bits, then the centre.

    Raises:
        UserError: a folder that asks for a preparation open_clip does not know.
    """
    import open_clip
    from PIL import Image

    wish = {key: value for key, value in model.preprocess.items() if key not in ("mode", "size")}
    try:
        prepare = open_clip.image_transform(model.side, is_train=False, **wish)
    except (TypeError, AssertionError) as error:
        raise UserError(f"{clip.CONFIG}: preprocess_cfg is not understood: {error}") from error

    def pictures(images: Tensor) -> Tensor:
        arrays = images.permute(0, 2, 3, 1).contiguous().numpy()
        return torch.stack([prepare(Image.fromarray(array)) for array in arrays])

    return pictures
