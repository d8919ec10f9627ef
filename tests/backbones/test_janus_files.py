"""Janus on disk: the forms its weights come in, its prompts, and what must be refused."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from alignbench.api import Sampling
from alignbench.backbones.janus.model import Janus, build, load
from alignbench.backbones.janus.prompts import SPECIAL, read_prompt_tokenizer, stand_in, template
from alignbench.errors import UserError
from tests.helpers import janus_toys

TAG = "<begin_of_image>"


@pytest.fixture(scope="module")
def original() -> Any:
    return janus_toys.hub_model(seed=3)


@pytest.fixture(scope="module")
def hub(original: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return janus_toys.write_hub_folder(tmp_path_factory.mktemp("hub"), original)


def released_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Undo the conversion: transformers' names to those of the released program, attention fused again."""
    rules = [
        (r"^model\.language_model\.", "language_model.model."),
        (r"^lm_head\.", "language_model.lm_head."),
        (r"^model\.generation_embeddings\.", "gen_embed."),
        (r"^model\.generation_aligner\.fc1", "gen_aligner.layers.0"),
        (r"^model\.generation_aligner\.hidden_layers\.0", "gen_aligner.layers.2"),
        (r"^model\.generation_head\.proj_out", "gen_head.output_mlp_projector"),
        (r"^model\.generation_head\.", "gen_head."),
        (r"^model\.aligner\.fc1", "aligner.layers.0"),
        (r"^model\.aligner\.hidden_layers\.0", "aligner.layers.2"),
        (r"^(model\.vqmodel.*)\.mid\.block_1\.", r"\1.mid.0."),
        (r"^(model\.vqmodel.*)\.mid\.attn_1\.", r"\1.mid.1."),
        (r"^(model\.vqmodel.*)\.mid\.block_2\.", r"\1.mid.2."),
        (r"^(model\.vqmodel\..*)\.block\.", r"\1.res."),
        (r"^model\.vqmodel\.(encoder\.)down\.", r"gen_vision_model.\1conv_blocks."),
        (r"^model\.vqmodel\.(decoder\.)up\.", r"gen_vision_model.\1conv_blocks."),
        (r"^model\.vqmodel\.", "gen_vision_model."),
        (r"^model\.vision_model\.encoder\.layers\.", "vision_model.vision_tower.blocks."),
        (r"^model\.vision_model\.post_layernorm\.", "vision_model.vision_tower.norm."),
        (r"^model\.vision_model\.embeddings\.", "vision_model.vision_tower."),
        (r"vision_tower\.patch_embedding\.", "vision_tower.patch_embed.proj."),
        (r"vision_tower\.position_embedding\.weight", "vision_tower.pos_embed"),
        (r"(vision_tower\..*)\.self_attn\.projection_layer\.", r"\1.attn.proj."),
        (r"(vision_tower\..*)\.self_attn\.", r"\1.attn."),
        (r"(vision_tower\..*)\.layer_norm([12])\.", r"\1.norm\2."),
    ]  # fmt: skip
    named = {}
    for key, value in state.items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        named[key] = value[None] if key.endswith("pos_embed") else value
    for key in [key for key in named if ".attn.q_proj." in key and "vision_tower" in key]:
        pieces = [named.pop(key.replace("q_proj", f"{letter}_proj")) for letter in "qkv"]
        named[key.replace("q_proj", "qkv")] = torch.cat(pieces)
    return named


@pytest.fixture(scope="module")
def released(original: Any, hub: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two shards as the released repositories have them, with the tensors that have no counterpart."""
    folder = tmp_path_factory.mktemp("released")
    state = released_names({key: value.clone() for key, value in original.state_dict().items()})
    state["gen_vision_model.quantize.codebook_used"] = torch.zeros(8)
    state["vision_model.vision_tower.attn_pool.latent"] = torch.zeros(1, 1, 4)
    state["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)
    keys = sorted(state)
    for number, part in enumerate((keys[::2], keys[1::2]), start=1):
        torch.save({key: state[key] for key in part}, folder / f"pytorch_model-0000{number}-of-00002.bin")
    shutil.copyfile(hub / "tokenizer.json", folder / "tokenizer.json")
    (folder / "config.json").write_text(json.dumps({"model_type": "multi_modality"}))
    names = ["policy", "policy.2"]
    return dict(zip(names, sorted(folder.glob("*.bin")), strict=True))


def same(one: Janus, other: Janus) -> None:
    """Equal weights of every part, bit for bit."""
    for role, state in one.export().items():
        found = other.export()[role]
        assert state.keys() == found.keys()
        assert all(torch.equal(value, found[key]) for key, value in state.items()), role
    assert one.rest.keys() == other.rest.keys()
    assert all(torch.equal(value, other.rest[key]) for key, value in one.rest.items())


# --- forms ----------------------------------------------------------------------------------------


def test_released_names_look_like_the_released_ones(released: dict[str, Path]) -> None:
    """Names known from the released checkpoints, so that the two maps here cannot agree on nonsense."""
    keys = {key for path in released.values() for key in torch.load(path, weights_only=True)}
    assert keys >= {
        "language_model.model.layers.1.self_attn.q_proj.weight",
        "language_model.lm_head.weight",
        "gen_embed.weight",
        "gen_aligner.layers.2.bias",
        "gen_head.output_mlp_projector.weight",
        "gen_head.vision_head.weight",
        "gen_vision_model.encoder.conv_blocks.0.res.0.norm1.weight",
        "gen_vision_model.decoder.conv_blocks.0.attn.1.proj_out.weight",
        "gen_vision_model.decoder.mid.1.q.weight",
        "gen_vision_model.encoder.conv_blocks.1.downsample.conv.weight",
        "gen_vision_model.quantize.embedding.weight",
        "vision_model.vision_tower.blocks.0.attn.qkv.weight",
        "vision_model.vision_tower.pos_embed",
        "aligner.layers.0.weight",
    }


def test_released_weights_are_those_of_the_hub(hub: Path, released: dict[str, Path]) -> None:
    same(build(janus_toys.CARD, released), load(hub))
    same(build(janus_toys.CARD, {"policy": hub}), load(hub))
    same(build(janus_toys.CARD, {"policy": hub / "model.safetensors"}), load(hub))


def test_a_run_s_policy_goes_with_the_tokenizer_of_a_whole_model(hub: Path, tmp_path: Path) -> None:
    trained = load(hub)
    with torch.no_grad():
        trained.policy.get_parameter("generation_embeddings.weight").add_(1)
    files = {}
    for role, state in trained.export().items():
        files[role] = tmp_path / f"{role}.safetensors"
        save_file({key: value.contiguous() for key, value in state.items()}, files[role])
    card = janus_toys.CARD
    both = build(card, {**files, "text": hub / "tokenizer.json"})
    mixed = build(card, {"policy": files["policy"], "tokenizer": hub})
    for model in (both, mixed):
        assert all(
            torch.equal(value, model.export()[role][key])
            for role, state in trained.export().items()
            for key, value in state.items()
        )


def test_saved_in_shards_and_read_by_us_and_by_transformers(hub: Path, tmp_path: Path) -> None:
    from transformers import AutoProcessor, JanusForConditionalGeneration

    model = load(hub)
    model.save(tmp_path / "saved", shard_size="1MB")
    assert len(list((tmp_path / "saved").glob("*.safetensors"))) > 1
    again = load(tmp_path / "saved")
    same(model, again)
    loaded: Any = JanusForConditionalGeneration.from_pretrained(tmp_path / "saved", output_loading_info=True)
    theirs, report = loaded
    assert not any(report.values())
    embedding = theirs.get_input_embeddings().weight
    assert embedding.data_ptr() != theirs.lm_head.weight.data_ptr(), "tied: the head went over the embedding"
    assert torch.equal(embedding, model.policy.get_parameter("language_model.embed_tokens.weight"))
    texts = ["a cat", "two red cubes"]
    talk = AutoProcessor.from_pretrained(tmp_path / "saved")(
        text=[template(text).removesuffix(TAG) for text in texts],
        generation_mode="image", padding=True, return_tensors="pt",
    )  # fmt: skip
    prompts = again.text_condition(texts)
    assert torch.equal(talk["input_ids"], prompts.ids)
    drawn = theirs.generate(**talk, generation_mode="image", do_sample=False, guidance_scale=4.0)
    ours = again.generate(prompts, torch.zeros(2, 25), Sampling(greedy=True, cfg_scale=4.0))
    assert torch.equal(drawn, ours.tokens)


def test_models_read_from_a_community_configuration_are_untied(hub: Path, tmp_path: Path) -> None:
    """A config.json without the field means tied for new versions of transformers."""
    shutil.copytree(hub, tmp_path / "hub")
    path = tmp_path / "hub" / "config.json"
    content = json.loads(path.read_text())
    del content["tie_word_embeddings"]
    path.write_text(json.dumps(content))
    model = load(tmp_path / "hub")
    same(model, load(hub))
    model.save(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["tie_word_embeddings"] is False


# --- prompts --------------------------------------------------------------------------------------


def test_the_stand_in_reads_what_the_hub_s_tokenizer_reads(hub: Path) -> None:
    texts = ["a cat", " zwei  rote Würfel\n", "", "a photo of <|User|>"]
    one, other = stand_in().encode(texts), read_prompt_tokenizer(hub / "tokenizer.json").encode(texts)
    assert torch.equal(one.ids, other.ids) and torch.equal(one.mask, other.mask)
    assert one.ids[:, -1].eq(3).all() and (one.ids * one.mask).eq(3).sum() == 4


def edited(hub: Path, path: Path, change: Any) -> Path:
    content = json.loads((hub / "tokenizer.json").read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def test_special_ids_are_looked_up_by_text(hub: Path, tmp_path: Path) -> None:
    """Releases number them differently: here padding and begin-of-image change places."""

    def swap(content: Any) -> None:
        vocabulary, added = content["model"]["vocab"], content["added_tokens"]
        one, other = SPECIAL[2], SPECIAL[3]
        vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
        for token in added:
            token["id"] = vocabulary[token["content"]]
        added.sort(key=lambda token: token["id"])

    tokenizer = read_prompt_tokenizer(edited(hub, tmp_path / "tokenizer.json", swap))
    assert (tokenizer.bos, tokenizer.pad, tokenizer.begin_image) == (0, 3, 2)
    prompts = tokenizer.encode(["a cat", "cat"])
    assert prompts.ids[:, -1].tolist() == [2, 2] and prompts.ids[1, 0] == 3


def rename(content: Any) -> None:
    text = json.dumps(content).replace(TAG, "<image>")
    content.clear()
    content.update(json.loads(text))


def metaspace(content: Any) -> None:
    """What some versions of transformers make of this tokenizer: spaces vanish."""
    content["pre_tokenizer"] = {
        "type": "Metaspace",
        "replacement": "▁",
        "prepend_scheme": "first",
        "split": False,
    }


@pytest.mark.parametrize(("change", "message"), [(rename, "has no token"), (metaspace, "turns")])
def test_a_tokenizer_that_would_spoil_prompts_is_refused(
    change: Any, message: str, hub: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        read_prompt_tokenizer(edited(hub, tmp_path / "tokenizer.json", change))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be read"):
        read_prompt_tokenizer(tmp_path / "tokenizer.json")


def test_padding_settings_inside_the_file_are_ignored(hub: Path, tmp_path: Path) -> None:
    def pad(content: Any) -> None:
        content["padding"] = {
            "strategy": {"Fixed": 100}, "direction": "Right", "pad_to_multiple_of": None,
            "pad_id": 2, "pad_type_id": 0, "pad_token": SPECIAL[2],
        }  # fmt: skip
        content["truncation"] = {
            "direction": "Right", "max_length": 12, "strategy": "LongestFirst", "stride": 0,
        }  # fmt: skip

    tokenizer = read_prompt_tokenizer(edited(hub, tmp_path / "tokenizer.json", pad))
    assert torch.equal(tokenizer.encode(["a cat"]).ids, stand_in().encode(["a cat"]).ids)


# --- what is refused ------------------------------------------------------------------------------


CHANGES = {
    "missing": lambda state: state.pop("model.generation_head.vision_head.bias"),
    "unexpected": lambda state: state.update({"model.generation_head.extra": torch.zeros(1)}),
    "of another shape": lambda state: state.update({"model.vqmodel.quant_conv.bias": torch.zeros(9)}),
    "part of no Janus-Pro": lambda state: state.update({"model.layers.0.weight": torch.zeros(1)}),
}


@pytest.mark.parametrize("what", CHANGES)
def test_weights_that_do_not_fit_are_refused(what: str, hub: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(hub, tmp_path / "hub"))
    state = load_file(folder / "model.safetensors")
    CHANGES[what](state)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(UserError, match=what):
        load(folder)


def test_released_files_that_do_not_do_are_refused(released: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="missing"):
        build(janus_toys.CARD, {"policy": released["policy"]})
    with pytest.raises(UserError, match="not that of a Janus model"):
        # transformers reads the configuration as a wrong default: 32 layers of width 4096.
        load(released["policy"].parent)


def test_other_mistakes_are_named(hub: Path, tmp_path: Path) -> None:
    shutil.copyfile(hub / "model.safetensors", tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"no tokenizer\.json beside"):
        build(janus_toys.CARD, {"policy": tmp_path / "model.safetensors"})
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no weights"):
        build(janus_toys.CARD, {"policy": tmp_path / "empty", "text": hub / "tokenizer.json"})
    with pytest.raises(UserError, match="no weights file for policy"):
        build(janus_toys.CARD, {"tokenizer": hub})
    for vocabulary, message, files in (
        (100, "264 ids, the model knows 100", {"policy": hub}),
        (None, "text_vocab", None),
    ):
        shape = janus_toys.CARD.policy.model_copy(update={"text_vocab": vocabulary})
        with pytest.raises(UserError, match=message):
            build(janus_toys.CARD.model_copy(update={"policy": shape}), files)
    with pytest.raises(UserError, match="only understanding needs"):
        build(janus_toys.CARD, None).save(tmp_path / "saved")


def test_without_transformers_the_extra_is_named(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for attempt in (lambda: load(hub), lambda: build(janus_toys.CARD, None)):
        with pytest.raises(UserError, match=r"needs transformers.*pip install"):
            attempt()
