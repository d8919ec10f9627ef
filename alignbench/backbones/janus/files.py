"""Janus-Pro on disk: its configuration, its weights in every released form, and writing the hub's form."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignbench.backbones.janus.keys import Parts, put_together, take_apart
from alignbench.backbones.janus.prompts import PROMPT_FILE
from alignbench.backbones.weights import NoDraws, read_state_dict
from alignbench.errors import UserError, missing_packages
from alignbench.files import parse_json
from alignbench.registry.schema import ModelCard

CONFIG = "config.json"
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLE = ("model.safetensors", "pytorch_model.bin")
SHARD_SIZE = "5GB"
MAX_POSITIONS = 16384


def require_transformers() -> None:
    """Make sure that the optional package is there.

    Raises:
        UserError: it is not.
    """
    missing, command = missing_packages(["transformers"], "rewards")
    if missing:
        raise UserError("Janus needs transformers", fix=command)


def config_of(card: ModelCard) -> Any:
    """Return the `JanusConfig` of a card.

    Geometry of the understanding tower, which no card states, is that of the released models.

    Raises:
        UserError: the card does not say how large the text vocabulary is.
    """
    from transformers import JanusConfig

    policy, tokenizer = card.policy, card.tokenizer
    if policy.text_vocab is None:
        raise UserError("a Janus card needs policy.text_vocab", fix="add it to the card")
    return JanusConfig(
        text_config={
            "model_type": "llama",
            "vocab_size": policy.text_vocab,
            "hidden_size": policy.dim,
            "intermediate_size": policy.ffn_hidden,
            "num_hidden_layers": policy.layers,
            "num_attention_heads": policy.heads,
            "num_key_value_heads": policy.heads,
            "max_position_embeddings": MAX_POSITIONS,
            "rms_norm_eps": policy.norm_eps,
            "rope_parameters": {"rope_type": "default", "rope_theta": policy.rope_base},
            "tie_word_embeddings": False,
        },
        vision_config={
            "image_size": card.image_size,
            "patch_size": tokenizer.downsample,
            "num_image_tokens": policy.tokens,
            "projection_dim": policy.dim,
        },
        vq_config={
            "base_channels": tokenizer.base_channels,
            "channel_multiplier": list(tokenizer.multipliers),
            "num_res_blocks": tokenizer.res_blocks,
            "latent_channels": tokenizer.z_channels,
            "num_embeddings": policy.vocab_size,
            "embed_dim": tokenizer.code_dim,
            "projection_dim": policy.dim,
            "image_token_embed_dim": policy.dim,
        },
        # Without this, new versions of transformers overwrite the text embedding with the language head.
        tie_word_embeddings=False,
    )


def read_config(folder: Path) -> Any:
    """Return the `JanusConfig` in a folder of the hub's form.

    Raises:
        UserError: there is none, or it is that of another model. The released repositories have one that
            transformers reads as a wrong default without saying so.
    """
    from transformers import JanusConfig

    path = folder / CONFIG
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error})", fix="name a folder of the hub's form") from error
    if not isinstance(content, dict) or content.get("model_type") != "janus":
        raise UserError(
            f"{path} is not that of a Janus model in the form of transformers",
            fix="use a converted repository such as deepseek-community/Janus-Pro-1B, or a model card",
        )
    config = JanusConfig.from_dict(content)
    config.tie_word_embeddings = False
    return config


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files of a folder of the hub's form, shards in order.

    Raises:
        UserError: there are none.
    """
    for name in INDEXES:
        if (folder / name).is_file():
            return _shards(folder / name)
    for name in SINGLE:
        if (folder / name).is_file():
            return [folder / name]
    raise UserError(f"{folder} holds no weights", fix=f"expected {' or '.join((*SINGLE, *INDEXES))} in it")


def read_parts(paths: Iterable[Path]) -> Parts:
    """Read weight files, folders of the hub's form and shard indexes together.

    Files that belong to the prompt tokenizer are passed over.

    Raises:
        UserError: a file that cannot be read, or tensors that are part of no Janus-Pro.
    """
    state: dict[str, Tensor] = {}
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += weight_files(path)
        elif path.name.endswith(".index.json"):
            files += _shards(path)
        elif path.suffix != ".json":
            files.append(path)
    for file in files:
        state |= read_state_dict(file)
    return take_apart(state, name=" and ".join(str(file) for file in files[:2]))


def prompt_file(files: Mapping[str, Path]) -> Path:
    """Return the file of the prompt tokenizer: that of the role `text`, or the one beside the weights.

    Raises:
        UserError: none does.
    """
    if "text" in files and files["text"].is_file():
        return files["text"]
    folders = [path if path.is_dir() else path.parent for path in files.values()]
    for folder in folders:
        if (folder / PROMPT_FILE).is_file():
            return folder / PROMPT_FILE
    raise UserError(
        f"no {PROMPT_FILE} beside {folders[0] if folders else 'the weights'}: prompts cannot be read",
        fix=f"copy {PROMPT_FILE} of the model's repository there",
    )


def write_hub_form(folder: Path, config: Any, parts: Parts, *, shard_size: str = SHARD_SIZE) -> None:
    """Write weights and configuration so that `JanusForConditionalGeneration.from_pretrained` reads them.

    Raises:
        UserError: parts for understanding are missing, as in models with random weights.
    """
    from huggingface_hub import save_torch_state_dict
    from transformers import JanusForConditionalGeneration

    if not parts.rest:
        raise UserError(
            "this model was built without the parts that only understanding needs",
            fix="build it from complete weights; random ones cannot be saved in the hub's form",
        )
    with torch.device("meta"), NoDraws():
        shell = JanusForConditionalGeneration(config)
    state = put_together(parts)
    wanted = {key: value.shape for key, value in shell.state_dict().items()}
    if wrong := wanted.items() ^ {key: value.shape for key, value in state.items()}.items():
        names = sorted({key for key, _ in wrong})
        raise UserError(f"the model does not fit its configuration: {', '.join(names[:5])}")
    config = copy.deepcopy(config)
    config.architectures = ["JanusForConditionalGeneration"]
    # Loading casts all tensors to one dtype; the one written down must be the widest.
    config.dtype = torch.float32
    config.save_pretrained(folder)
    save_torch_state_dict(state, folder, max_shard_size=shard_size)


def _shards(index: Path) -> list[Path]:
    try:
        content = parse_json(index.read_text(encoding="utf-8"))
        names = sorted(set(content["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} cannot be read as an index of shards", fix="fetch it again") from error
    return [index.parent / name for name in names]
