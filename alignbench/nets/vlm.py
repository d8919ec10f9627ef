"""A vision-language model of the transformers library that is asked about pictures."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignbench.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Vlm:
    """An image-text-to-text model of transformers, frozen and in eval mode, with its processor."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor

    def to(self, device: torch.device) -> None:
        self.model.to(device)

    def ask(self, image: Tensor, question: str) -> Any:
        """[3, H, W] in [0, 1] and a question → what the model takes, up to where its answer begins."""
        picture = (image.clamp(0, 1) * 255).round().to(torch.uint8).cpu()
        content = [{"type": "image"}, {"type": "text", "text": question}]
        prompt = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        inputs = self.processor(images=[picture], text=[prompt], return_tensors="pt").to(self.model.device)
        for name, value in inputs.items():
            if value.is_floating_point():
                inputs[name] = value.to(self.model.dtype)
        return inputs

    @torch.no_grad()
    def first_token(self, image: Tensor, question: str) -> Tensor:
        """[3, H, W] in [0, 1] → [V] log-probabilities of the first token of the answer, float32.

        One picture at a time, so that padding and neighbours cannot change a number.
        """
        result: Tensor = self.model(**self.ask(image, question)).logits[0, -1].float().log_softmax(dim=-1)
        return result

    def starts(self, spellings: Iterable[str]) -> list[int]:
        """Return the different tokens that the spellings of an answer begin with."""
        tokenizer = self.processor.tokenizer
        return sorted({tokenizer.encode(text, add_special_tokens=False)[0] for text in spellings})


def load_vlm(folder: Path, device: torch.device, precision: str) -> tuple[Any, Any]:
    """Load model and processor from a folder in the hub's form; `precision` is a key of `DTYPES`.

    Raises:
        UserError: there is no chat template.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    network: Any = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=DTYPES[precision], local_files_only=True
    )
    processor: Any = AutoProcessor.from_pretrained(folder, local_files_only=True)
    processor.chat_template = processor.chat_template or processor.tokenizer.chat_template
    if not processor.chat_template:
        raise UserError(
            f"no chat template in {folder}",
            fix="name an instruction-tuned model, or put its chat_template.json there",
        )
    return network.to(device).eval().requires_grad_(False), processor
