"""VQAScore (arXiv:2404.01291): how likely a vision-language model says that the image shows the prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from alignbench.evaluators.prompt_match import PromptScore
from alignbench.hub.verify import AssetFile
from alignbench.nets.vlm import Vlm, load_vlm
from alignbench.registry.protocol import EvaluatorCard
from alignbench.registry.schema import Scalar

ANSWER = "Yes"


class VqaScore(PromptScore):
    """P("Yes") as the first token of the answer, over all tokens; in [0, 1].

    The card's one asset is the model, a folder in the hub's form. `{}` in the option `question` stands for
    the prompt; `judge` names the model for people, and is part of the identity as its files are.
    """

    def __init__(
        self,
        card: EvaluatorCard,
        *,
        options: Mapping[str, Scalar],
        assets: Mapping[str, AssetFile],
        device: torch.device,
    ) -> None:
        super().__init__(card, options=options, assets=assets)
        (file,) = assets.values()
        self.vlm = Vlm(*load_vlm(file.path, device, str(options["precision"])))
        self.question = str(options["question"])
        self.yes = self.vlm.starts([ANSWER])

    def values(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """One forward pass an image."""
        found = [
            self.vlm.first_token(image.float() / 255, self.question.replace("{}", text))[self.yes]
            for image, text in zip(images, texts, strict=True)
        ]
        return torch.cat(found).double().exp()


build = VqaScore
