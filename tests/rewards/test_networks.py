"""Rewards on networks against the libraries they come from, with tiny random weights in the hub's form."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from alignbench import api
from alignbench.errors import UserError
from alignbench.hub.locate import hub_folder, locate_reward_files
from alignbench.nets import digits
from alignbench.nets.preprocess import Preprocess
from alignbench.registry.lookup import Registry
from alignbench.registry.reward_spec import resolve
from alignbench.rewards import vlm
from alignbench.rewards.build import build
from tests.helpers.reward_toys import BUILT_IN, request
from tests.helpers.tiny_rewards import TINY, save_clip

CPU = torch.device("cpu")
REGISTRY = Registry([("built-in", BUILT_IN)])
TEXTS = ("a photo of a cat", "dog", "two red cubes 7")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def options(folder: Path) -> dict[str, str]:
    """{reward: options that use its tiny network}."""
    names = ("aesthetic", "clip-score", "hpsv2.1", "pickscore", "vlm-judge")
    with pytest.MonkeyPatch.context() as patch:
        return {name: TINY[name](folder / name, patch) or "" for name in names}


def smooth(count: int = 3, side: int = 48, *, width: int | None = None) -> Tensor:
    """Pictures that resizing does not drive out of [0, 1], with values an 8-bit file can hold."""
    numbers = torch.Generator().manual_seed(3)
    coarse = torch.rand(count, 3, 5, 5, generator=numbers)
    fine = F.interpolate(coarse, (side, width or side), mode="bilinear", align_corners=True)
    return ((0.2 + 0.6 * fine) * 255).round() / 255


def scored(name: str, options: str, images: Tensor, texts: tuple[str, ...] = TEXTS) -> Tensor:
    reward = build(f"{name}({options})", REGISTRY, CPU, image_size=min(images.shape[-2:]))
    scores = reward.score(api.ScoreRequest(images=images, group=torch.arange(len(images)), texts=texts))
    assert scores.valid.all()
    return scores.values


# --- against the libraries ------------------------------------------------------------------------


def clip_outputs(folder: Path, images: Tensor, pixels: Tensor | None = None) -> Any:
    """What transformers says when it prepares texts itself, and pictures unless they are given as well."""
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

    if pixels is None:
        pictures = CLIPImageProcessor.from_pretrained(folder)
        pixels = pictures(images=list(images), return_tensors="pt", do_rescale=False)["pixel_values"]
    words = AutoTokenizer.from_pretrained(folder)(list(TEXTS), padding=True, return_tensors="pt")
    with torch.no_grad():
        return CLIPModel.from_pretrained(folder)(pixel_values=pixels, **words)


@pytest.mark.parametrize("shape", [(48, 48), (32, 32), (48, 72), (20, 20)])
def test_clip_score_is_the_cosine_that_transformers_gives(
    shape: tuple[int, int], folder: Path, options: dict[str, str]
) -> None:
    images = smooth(side=shape[0], width=shape[1])
    output = clip_outputs(folder / "clip-score", images)
    expected = (output.image_embeds * output.text_embeds).sum(dim=-1)
    assert expected.std() > 0.01
    assert (scored("clip-score", options["clip-score"], images) - expected).abs().max() < 1e-5


def test_pickscore_is_the_logit_that_transformers_gives(folder: Path, options: dict[str, str]) -> None:
    expected = clip_outputs(folder / "pickscore", smooth()).logits_per_image.diagonal()
    assert (scored("pickscore", options["pickscore"], smooth()) - expected).abs().max() < 1e-4


def test_eight_bit_pictures_through_pil_score_nearly_the_same(folder: Path, options: dict[str, str]) -> None:
    """The official route: PIL's own resize, rounded to bytes."""
    from torchvision.transforms import functional as pictures

    small = [pictures.to_pil_image(image).resize((32, 32), Image.Resampling.BICUBIC) for image in smooth()]
    ready = Preprocess(32)(torch.stack([pictures.to_tensor(image) for image in small]))
    output = clip_outputs(folder / "clip-score", smooth(), ready)
    expected = (output.image_embeds * output.text_embeds).sum(dim=-1)
    ours = scored("clip-score", options["clip-score"], smooth())
    assert (ours - expected).abs().max() < 0.02
    assert expected.argsort().tolist() == ours.argsort().tolist()


def test_aesthetic_is_a_chain_of_linear_layers_on_the_unit_embedding(
    folder: Path, options: dict[str, str]
) -> None:
    embedding = clip_outputs(folder / "aesthetic", smooth()).image_embeds
    state = torch.load(folder / "aesthetic" / "head.pth", weights_only=True)
    for number in (0, 2, 4, 6, 7):
        embedding = F.linear(embedding, state[f"layers.{number}.weight"], state[f"layers.{number}.bias"])
    ours = scored("aesthetic", options["aesthetic"], smooth(), texts=())
    assert (ours - embedding[:, 0]).abs().max() < 1e-5


@pytest.mark.parametrize("shape", [(48, 48), (28, 28), (20, 40), (45, 30)])
def test_hps_is_the_cosine_of_open_clip_after_padding_to_a_square(
    shape: tuple[int, int], folder: Path, options: dict[str, str]
) -> None:
    import open_clip
    from torchvision.transforms import functional as pictures

    place = folder / "hpsv2.1"
    model = open_clip.CLIP(**json.loads((place / "open_clip_config.json").read_text())["model_cfg"]).eval()
    model.load_state_dict(torch.load(place / "HPS_v2.1_compressed.pt", weights_only=True)["state_dict"])
    images = smooth(side=shape[0], width=shape[1])
    size = [round(length * 28 / max(shape)) for length in shape]
    ready = pictures.resize(images, size, pictures.InterpolationMode.BICUBIC, antialias=True)
    down, right = 28 - size[0], 28 - size[1]
    ready = pictures.pad(ready, [right // 2, down // 2, right - right // 2, down - down // 2])
    ready = pictures.normalize(ready, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    with torch.no_grad():
        seen = model.encode_image(ready, normalize=True)
        read = model.encode_text(open_clip.get_tokenizer("ViT-H-14")(list(TEXTS)), normalize=True)
    expected = (seen * read).sum(dim=-1)
    assert expected.std() > 0.01
    assert (scored("hpsv2.1", options["hpsv2.1"], images) - expected).abs().max() < 1e-5


def test_the_judge_compares_yes_with_no_as_generation_would(folder: Path, options: dict[str, str]) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    place = folder / "vlm-judge"
    processor = AutoProcessor.from_pretrained(place)
    model = AutoModelForImageTextToText.from_pretrained(place).eval()
    question = "Is it {}? Yes or no."
    expected = []
    for image, text in zip(smooth(), TEXTS, strict=True):
        prompt = f"<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Is it {text}? Yes or no."
        prompt += "<|im_end|>\n<|im_start|>assistant\n"
        inputs = processor(images=[(image * 255).round().byte()], text=[prompt], return_tensors="pt")
        produced = model.generate(
            **inputs, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        probabilities = produced.logits[0][0].softmax(dim=-1)
        yes, no = (
            sum(probabilities[processor.tokenizer.convert_tokens_to_ids(word)] for word in words)
            for words in (("yes", "Yes"), ("no", "No"))
        )
        expected.append(float(yes / (yes + no)))
    ours = scored("vlm-judge", f'{options["vlm-judge"]},question="{question}"', smooth())
    assert ours.tolist() == pytest.approx(expected, abs=1e-5)
    assert len({round(value, 4) for value in expected}) == 3


def test_a_judge_that_would_say_something_else_gives_no_score(options: dict[str, str]) -> None:
    text = options["vlm-judge"].replace("min_mass=0", "min_mass=0.9")
    reward = build(f"vlm-judge({text})", REGISTRY, CPU, image_size=48)
    scores = reward.score(api.ScoreRequest(images=smooth(), group=torch.arange(3), texts=TEXTS))
    assert not scores.valid.any() and scores.values.isnan().all()


def test_written_answers_are_the_likeliest_tokens(folder: Path, options: dict[str, str]) -> None:
    """Against a loop over forward passes of the whole text so far, without a cache."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    place = folder / "vlm-judge"
    processor = AutoProcessor.from_pretrained(place)
    model = AutoModelForImageTextToText.from_pretrained(place).eval()
    judge = vlm.VlmScores(model, processor, "Score {}!", highest=5.0, lenient=False)
    answers = set()
    for image, text in zip(smooth(), TEXTS, strict=True):
        prompt = f"<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Score {text}! Reply with one"
        prompt += ' JSON object and nothing else: {"description": what the image shows, "score": a number'
        prompt += ' from 0 to 5, "explanation": the reason for the score}.<|im_end|>\n<|im_start|>assistant\n'
        inputs = processor(images=[(image * 255).round().byte()], text=[prompt], return_tensors="pt")
        asked = inputs["input_ids"].shape[1]
        with pytest.MonkeyPatch.context() as patch, torch.no_grad():
            patch.setattr(vlm, "MAX_NEW_TOKENS", 5)
            answers.add(answer := judge.answer(image, text))
            for _ in range(5):
                token = model(**inputs, use_cache=False).logits[:, -1:].argmax(dim=-1)
                inputs["input_ids"] = torch.cat([inputs["input_ids"], token], dim=1)
                for name in {"attention_mask", "mm_token_type_ids"} & inputs.keys():
                    more = torch.full_like(token, int(name == "attention_mask"))
                    inputs[name] = torch.cat([inputs[name], more], dim=1)
        assert answer == processor.decode(inputs["input_ids"][0, asked:], skip_special_tokens=True)
    assert len(answers) > 1


ANSWERS = {
    '{"description": "a cat", "score": 4, "explanation": "blurred"}': 4.0,
    '```json\n{"score": 3.5}\n```': 3.5,
    '{"score": "2", "explanation": "it breaks off': 2.0,
    '{"description": "they wrote \\"score\\": 1, by hand", "score": 0}': 0.0,
    '{"score": 7}': 7.0,
    '{"score": 4': None,  # perhaps 4.5
    '{"score": 4/5}': None,
    '[{"score": 1}, {"score": 2}]': None,
    '{"description": "a cat"}': None,
    "Four of five.": None,
}


def test_answers_without_a_score_fail_and_count_as_0_only_where_that_is_asked_for() -> None:
    assert {answer: vlm.score_in(answer) for answer in ANSWERS} == ANSWERS
    count, values = len(ANSWERS), list(ANSWERS.values())

    class Scripted(vlm.VlmScores):
        def answer(self, image: Tensor, text: str) -> str:
            return text

    given = api.ScoreRequest(images=smooth(count, 16), group=torch.arange(count), texts=tuple(ANSWERS))
    for lenient in (False, True):
        scores = Scripted(None, None, "", highest=5.0, lenient=lenient).score(given)
        assert scores.valid.tolist() == [lenient or value not in (None, 7.0) for value in values]
        assert scores.values.tolist() == [value or 0.0 for value in values]


def test_long_texts_are_cut_and_not_refused(options: dict[str, str]) -> None:
    long = ("a red cat " * 60).strip()
    for name in ("clip-score", "hpsv2.1"):
        values = scored(name, options[name], smooth(2, 32), (long, f"{long} and a dog at the end"))
        assert values.isfinite().all()


def test_class_logprob_is_that_of_the_requested_class_and_likes_real_digits() -> None:
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.images[:200]).float()[:, None].expand(-1, 3, -1, -1) / 16
    labels = torch.from_numpy(data.target[:200]).long()
    reward = build("class-logprob-digits", REGISTRY, CPU, image_size=8)
    logits = digits.load("digits-features-b").logits(2 * images - 1).double().log_softmax(dim=1)
    means = []
    for asked in (labels, (labels + 1) % 10):
        scores = reward.score(request(200, images=images, labels=asked)).values
        assert scores.tolist() == pytest.approx(logits[range(200), asked].tolist(), abs=1e-5)
        means.append(scores.mean())
    assert means[0] > -0.3 and means[1] < -3


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "file", "command"),
    [
        ("clip-score", "config.json", "hf download openai/clip-vit-large-patch14 --revision 32bd6428"),
        ("pickscore", "config.json", "hf download yuvalkirstain/PickScore_v1 --revision a4e4367c"),
        ("aesthetic", "config.json", "hf download openai/clip-vit-large-patch14 --revision 32bd6428"),
        ("hpsv2.1", "HPS_v2.1_compressed.pt", "hf download xswu/HPSv2 --revision 697403c7"),
        ("vlm-judge", "config.json", "hf download Qwen/Qwen2.5-VL-3B-Instruct --revision 66285546"),
    ],
)
def test_missing_weights_are_named_with_repository_file_and_command(
    name: str, file: str, command: str, empty_hub: Path
) -> None:
    with pytest.raises(UserError) as caught:
        build(name, REGISTRY, CPU, image_size=256)
    assert name in caught.value.what and file in caught.value.what
    assert caught.value.fix.startswith(f"alignbench fetch {name}, or {command}")
    (status, *_) = locate_reward_files(REGISTRY, resolve(name, REGISTRY))
    assert status.reason in caught.value.what, "the plan says the same"


@pytest.fixture
def empty_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.parametrize("name", ["clip-score", "pickscore", "vlm-judge"])
def test_the_files_that_a_card_lists_are_enough(
    name: str, folder: Path, options: dict[str, str], empty_hub: Path
) -> None:
    """`fetch` brings these and no others, each repository's by themselves: a judge without its chat template
    would fail in the first step."""
    resolved = resolve(name, REGISTRY)
    values = {key: str(value) for key, value in resolved.options.items()}
    for file in resolved.card.files:
        repo, revision = file.repo.format_map(values), file.revision.format_map(values)
        place = empty_hub / f"models--{repo.replace('/', '--')}" / "snapshots" / revision
        place.mkdir(parents=True)
        for names in file.files:
            chosen = next(
                folder / name / part for part in names.split("|") if (folder / name / part).is_file()
            )
            shutil.copy(chosen, place)
    images = smooth()
    few = scored(name, options[name].replace(f"path={folder / name}", "path="), images)
    assert torch.equal(few, scored(name, options[name], images))


def test_a_snapshot_in_the_hub_cache_is_found_by_branch_and_by_commit(empty_hub: Path) -> None:
    store = empty_hub / "models--some--clip"
    (store / "refs").mkdir(parents=True)
    (store / "refs" / "main").write_text("abc123")
    save_clip(store / "snapshots" / "abc123")
    for revision in ("main", "abc123"):
        found = hub_folder("clip-score", "some/clip", revision, "", ["config.json"])
        assert found == store / "snapshots" / "abc123"
    assert scored("clip-score", "model=some/clip,revision=main", smooth()).isfinite().all()
    with pytest.raises(UserError, match=r"some--clip@v2 lacks config\.json"):
        hub_folder("clip-score", "some/clip", "v2", "", ["config.json"])


def test_an_incomplete_folder_is_named_with_the_file(tmp_path: Path, options: dict[str, str]) -> None:
    save_clip(tmp_path / "clip")
    (tmp_path / "clip" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"clip: the folder lacks tokenizer\.json or vocab\.json"):
        build(f"clip-score(path={tmp_path / 'clip'})", REGISTRY, CPU, image_size=48)
    path = options["aesthetic"].partition(",")[0]
    with pytest.raises(UserError, match=r"sac\+logos\+ava1-l14-linearMSE\.pth") as caught:
        build(f"aesthetic({path})", REGISTRY, CPU, image_size=48)
    assert caught.value.fix == "alignbench fetch aesthetic"


@pytest.mark.parametrize(
    "state",
    [
        None,
        {},
        {"weight": torch.zeros(1, 16)},
        {"layers.0.weight": torch.zeros(1, 768), "layers.0.bias": torch.zeros(1)},
        {"layers.0.weight": torch.zeros(2, 16), "layers.0.bias": torch.zeros(2)},
    ],
    ids=["not torch", "no layers", "other keys", "another width", "two outputs"],
)
def test_a_file_that_is_no_head_is_refused(state: Any, options: dict[str, str], tmp_path: Path) -> None:
    head = tmp_path / "head.pth"
    head.write_bytes(b"rubbish") if state is None else torch.save(state, head)
    path = options["aesthetic"].partition(",")[0]
    with pytest.raises(UserError, match="is no aesthetic head"):
        build(f"aesthetic({path},head={head})", REGISTRY, CPU, image_size=48)


def test_a_checkpoint_of_another_architecture_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "hpsv2.1", tmp_path / "hps")
    torch.save({"state_dict": {"visual.proj": torch.zeros(2)}}, tmp_path / "hps" / "HPS_v2.1_compressed.pt")
    with pytest.raises(UserError, match=r"HPS_v2\.1_compressed\.pt does not fit open_clip_config\.json"):
        build(f"hpsv2.1(path={tmp_path / 'hps'})", REGISTRY, CPU, image_size=48)
