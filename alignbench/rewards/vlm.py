"""A vision-language model as judge: how likely is "yes" as the first word of its answer?

Nothing is generated and nothing parsed: one forward pass gives the probabilities of all first tokens.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from alignbench import api
from alignbench.errors import UserError
from alignbench.hub.locate import WEIGHTS, hub_folder

FILES = (
    "config.json",
    WEIGHTS,
    "preprocessor_config.json|processor_config.json",
    "tokenizer.json|vocab.json",
    "tokenizer_config.json",
)
FORMS = ("{}", " {}")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class VlmJudge:
    """P(yes) / (P(yes) + P(no)) for the first token of the answer, in [0, 1].

    Not valid where yes and no together have less than `min_mass`: the model then answers something else.
    The model is an image-text-to-text one of transformers, frozen and in eval mode; `{}` in the question
    stands for the picture's text.
    """

    def __init__(self, model: Any, processor: Any, question: str, min_mass: float) -> None:
        self.model, self.processor, self.question, self.min_mass = model, processor, question, min_mass
        self.yes, self.no = (_first_tokens(processor.tokenizer, word) for word in ("yes", "no"))

    def to(self, device: torch.device) -> None:
        self.model.to(device)

    @torch.no_grad()
    def score(self, request: api.ScoreRequest) -> api.Scores:
        """One forward pass a picture, so that padding and neighbours cannot change a score."""
        pairs = zip(request.images, request.texts, strict=True)
        logprobs = torch.stack([self._first_word(image, text) for image, text in pairs])
        yes, no = logprobs[:, self.yes].logsumexp(dim=-1), logprobs[:, self.no].logsumexp(dim=-1)
        return api.Scores((yes - no).sigmoid(), torch.logaddexp(yes, no).exp() >= self.min_mass)

    def _first_word(self, image: Tensor, text: str) -> Tensor:
        """[3, H, W] in [0, 1] → [V] log-probabilities of the first token of the answer, float32."""
        picture = (image.clamp(0, 1) * 255).round().to(torch.uint8).cpu()
        content = [{"type": "image"}, {"type": "text", "text": self.question.replace("{}", text)}]
        prompt = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        inputs = self.processor(images=[picture], text=[prompt], return_tensors="pt").to(self.model.device)
        for name, value in inputs.items():
            if value.is_floating_point():
                inputs[name] = value.to(self.model.dtype)
        result: Tensor = self.model(**inputs).logits[0, -1].float().log_softmax(dim=-1)
        return result


def _first_tokens(tokenizer: Any, word: str) -> list[int]:
    """Ids of the word's spellings (case, leading space) that are a single token.

    Raises:
        UserError: there are none.
    """
    spellings = [form.format(case) for case in (word, word.title(), word.upper()) for form in FORMS]
    tokens = [tokenizer.encode(spelling, add_special_tokens=False) for spelling in spellings]
    single = sorted({ids[0] for ids in tokens if len(ids) == 1 and ids[0] != tokenizer.unk_token_id})
    if not single:
        raise UserError(f"reward 'vlm-judge': the model's tokenizer has no token for {word!r}")
    return single


def build(
    device: torch.device,
    *,
    model: str,
    revision: str,
    path: str,
    question: str,
    min_mass: float,
    precision: Literal["fp32", "bf16"],
) -> VlmJudge:
    """Load model and processor from the hub's cache."""
    folder = hub_folder("vlm-judge", model, revision, path, FILES)
    from transformers import AutoModelForImageTextToText, AutoProcessor

    network: Any = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=DTYPES[precision], local_files_only=True
    )
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    return VlmJudge(network.to(device).eval().requires_grad_(False), processor, question, min_mass)
