"""A vision-language model as judge: how likely is "yes" as its first word, or which score does it write?

For the first nothing is generated and nothing parsed: one forward pass gives the probabilities of all first
tokens. The second is AR-GRPO's way (arXiv:2508.06924): the model writes JSON, in which a score stands.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import torch
from torch import Tensor

from alignbench import api
from alignbench.errors import UserError
from alignbench.hub.locate import WEIGHTS, hub_folder
from alignbench.nets.vlm import Vlm, load_vlm

FILES = (
    "config.json",
    WEIGHTS,
    "preprocessor_config.json|processor_config.json",
    "tokenizer.json|vocab.json",
    "tokenizer_config.json",
    "chat_template.json|chat_template.jinja|tokenizer_config.json",
)
FORMS = ("{}", " {}")
MAX_NEW_TOKENS = 256
"""Of a written answer, as released."""
ANSWER = (
    ' Reply with one JSON object and nothing else: {"description": what the image shows, '
    '"score": a number from 0 to %g, "explanation": the reason for the score}.'
)
"""Follows the question; our words, as the released program has no licence."""
_SCORE = re.compile(r'"score"\s*:\s*"?(-?\d+(?:\.\d+)?)"?\s*[,}]')


class VlmJudge(Vlm):
    """P(yes) / (P(yes) + P(no)) for the first token of the answer, in [0, 1].

    Not valid where yes and no together have less than `min_mass`: the model then answers something else.
    `{}` in the question stands for the picture's text.
    """

    def __init__(self, model: Any, processor: Any, question: str, min_mass: float) -> None:
        super().__init__(model, processor)
        self.question, self.min_mass = question, min_mass
        self.yes, self.no = (_first_tokens(processor.tokenizer, word) for word in ("yes", "no"))

    @torch.no_grad()
    def score(self, request: api.ScoreRequest) -> api.Scores:
        pairs = zip(request.images, request.texts, strict=True)
        logprobs = torch.stack(
            [self.first_token(image, self.question.replace("{}", text)) for image, text in pairs]
        )
        yes, no = logprobs[:, self.yes].logsumexp(dim=-1), logprobs[:, self.no].logsumexp(dim=-1)
        return api.Scores((yes - no).sigmoid(), torch.logaddexp(yes, no).exp() >= self.min_mass)


class VlmScores(Vlm):
    """The score that the model writes, 0 to `highest`, taking the likeliest token each time.

    Not valid where the answer holds no score, or one outside that range. `lenient`: the first counts as 0 and
    the second as it stands, as in the released program.
    """

    def __init__(self, model: Any, processor: Any, question: str, *, highest: float, lenient: bool) -> None:
        super().__init__(model, processor)
        self.question, self.highest, self.lenient = question, highest, lenient

    @torch.no_grad()
    def score(self, request: api.ScoreRequest) -> api.Scores:
        """One answer a picture, so that padding and neighbours cannot change a score."""
        found = [
            score_in(self.answer(image, text))
            for image, text in zip(request.images, request.texts, strict=True)
        ]
        valid = [self.lenient or (value is not None and 0 <= value <= self.highest) for value in found]
        values = torch.tensor([value or 0.0 for value in found], device=request.images.device)
        return api.Scores(values, torch.tensor(valid, device=request.images.device))

    def answer(self, image: Tensor, text: str) -> str:
        """Return what the model writes about a picture, [3, H, W] in [0, 1]."""
        inputs = self.ask(image, self.question.replace("{}", text) + ANSWER % self.highest)
        written = self.model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        return str(
            self.processor.decode(written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        )


def score_in(answer: str) -> float | None:
    """Return the score of an answer in JSON, which may break off behind it; None: it has none, or several."""
    scores = {float(number) for number in _SCORE.findall(answer)}
    return scores.pop() if len(scores) == 1 else None


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
    return VlmJudge(*_load("vlm-judge", device, model, revision, path, precision), question, min_mass)


def build_scores(
    device: torch.device,
    *,
    model: str,
    revision: str,
    path: str,
    question: str,
    highest: float,
    fidelity: Literal["exact", "as_released"],
    precision: Literal["fp32", "bf16"],
) -> VlmScores:
    """Load model and processor from the hub's cache."""
    loaded = _load("vlm-scores", device, model, revision, path, precision)
    return VlmScores(*loaded, question, highest=highest, lenient=fidelity == "as_released")


def _load(
    reward: str, device: torch.device, model: str, revision: str, path: str, precision: str
) -> tuple[Any, Any]:
    return load_vlm(hub_folder(reward, model, revision, path, FILES), device, precision)
