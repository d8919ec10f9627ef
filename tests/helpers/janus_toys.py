"""The card `janus-tiny`, and a model of its shape with its processor, made by transformers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from alignbench.registry.lookup import Registry

CARD = Registry.default().model("janus-tiny")
SIZE, TOKENS, WIDTH, CODES = CARD.image_size, CARD.policy.tokens, CARD.policy.dim, CARD.policy.vocab_size
SPECIAL = {
    "bos_token": "<｜begin▁of▁sentence｜>",
    "eos_token": "<｜end▁of▁sentence｜>",
    "pad_token": "<｜▁pad▁｜>",
    "boi_token": "<begin_of_image>",
    "eoi_token": "<end_of_image>",
    "image_token": "<image_placeholder>",
}
TEMPLATE = (
    "{% for m in messages %}<|User|>: {{ m['content'][0]['text'] }}{{ '\\n\\n' }}{% endfor %}<|Assistant|>:"
)


def hub_config() -> Any:
    from transformers import JanusConfig

    text = {
        "model_type": "llama", "vocab_size": 264, "hidden_size": WIDTH, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-6, "pad_token_id": 2, "bos_token_id": 0,
        "eos_token_id": 1, "tie_word_embeddings": False,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_ratio": 2.0,
        "image_size": SIZE, "patch_size": 4, "num_image_tokens": TOKENS, "projection_dim": WIDTH,
    }  # fmt: skip
    codes = {
        "base_channels": 32, "channel_multiplier": [1, 1, 2], "num_res_blocks": 1, "latent_channels": 32,
        "num_embeddings": CODES, "embed_dim": 8, "projection_dim": WIDTH, "image_token_embed_dim": WIDTH,
    }  # fmt: skip
    return JanusConfig(
        text_config=text, vision_config=vision, vq_config=codes, image_token_id=5, tie_word_embeddings=False
    )


def hub_model(seed: int = 0, config: Any = None) -> Any:
    """A random `JanusForConditionalGeneration` whose logits differ by more than rounding."""
    from transformers import JanusForConditionalGeneration

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = JanusForConditionalGeneration(config or hub_config()).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "vqmodel" not in name and parameter.dim() > 1:
                    parameter.normal_(0.0, 0.3)
            model.model.vqmodel.quantize.embedding.weight.normal_()
            model.model.generation_head.vision_head.weight.mul_(3)
    model.generation_config.generation_kwargs = {"boi_token_id": 3}
    model.generation_config.pad_token_id = 2
    model.generation_config.bos_token_id = 0
    model.generation_config._from_model_config = False
    return model


def processor() -> Any:
    """Byte-level tokenizer and image processor, wrapped as the released ones are."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from tokenizers.processors import TemplateProcessing
    from transformers import JanusImageProcessor, JanusProcessor, PreTrainedTokenizerFast

    order = [*SPECIAL.values(), "<|User|>", "<|Assistant|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({text: n for n, text in enumerate([*order, *alphabet])}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = TemplateProcessing(single=f"{order[0]} $A", special_tokens=[(order[0], 0)])
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in order])
    own = {key: SPECIAL[key] for key in ("bos_token", "eos_token", "pad_token")}
    extra = {key: SPECIAL[key] for key in ("boi_token", "eoi_token", "image_token")}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, padding_side="left", extra_special_tokens=extra, **own
    )
    images = JanusImageProcessor(
        image_mean=[0.5] * 3, image_std=[0.5] * 3, size={"height": SIZE, "width": SIZE}, min_size=4
    )
    return JanusProcessor(
        image_processor=images, tokenizer=tokenizer, chat_template=TEMPLATE, num_image_tokens=TOKENS
    )


def write_hub_folder(folder: Path, model: Any) -> Path:
    model.save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder
