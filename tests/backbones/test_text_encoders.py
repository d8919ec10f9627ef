"""Text encoders against a plain computation, and the cache in front of them."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from alignbench.api import TextEncoder, TextFeatures
from alignbench.backbones.text import t5 as text_t5
from alignbench.backbones.text import words as text_words
from alignbench.backbones.text.cache import CachedText
from alignbench.backbones.text.random import RandomText
from alignbench.backbones.text.words import WordConfig, WordEncoder
from alignbench.errors import UserError
from tests.conftest import DATA
from tests.helpers.tiny_t5 import WIDTH, WORDS, write_tiny_t5

CPU = torch.device("cpu")
SLOTS = 12
TEXTS = [
    "A red CIRCLE",
    "",
    "two blue squares and a green circle, a photo of a red square and of two green circles",
    "a red&lt;b&gt; square http://example.com/a.png #12",
    *(f"a photo of a {colour} square" for colour in ("red", "green", "blue", "red", "green", "blue")),
]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_t5(tmp_path_factory.mktemp("t5"))


def t5(folder: Path, *, slots: int = SLOTS, width: int = WIDTH, digest: str = "d") -> text_t5.T5TextEncoder:
    return text_t5.T5TextEncoder(
        folder, digest=digest, slots=slots, width=width, device=CPU, dtype=torch.float32
    )


# --- T5 -------------------------------------------------------------------------------------------


Plain = Callable[..., torch.Tensor]


@pytest.fixture(scope="session")
def plain(folder: Path) -> Plain:
    """Features of one clean caption's real tokens, [n, C], without any padding."""
    from transformers import AutoTokenizer, T5EncoderModel

    tokenizer = AutoTokenizer.from_pretrained(folder)
    networks = {
        dtype: T5EncoderModel.from_pretrained(folder, dtype=dtype).eval()
        for dtype in (torch.float32, torch.bfloat16)
    }

    @torch.no_grad()
    def call(cleaned: str, *, slots: int = SLOTS, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        ids = tokenizer(cleaned).input_ids
        ids = [*ids[:-1][: slots - 1], ids[-1]]
        out: torch.Tensor = networks[dtype](input_ids=torch.tensor([ids])).last_hidden_state[0]
        return out

    return call


def test_t5_features_are_those_of_the_bare_caption_at_the_right_end(folder: Path, plain: Plain) -> None:
    out = t5(folder).encode(TEXTS)
    assert out.features.shape == (len(TEXTS), SLOTS, WIDTH) and out.features.dtype == torch.float32
    assert out.texts == tuple(TEXTS), "as they came, not as they were cleaned"
    wanted = {0: "a red circle", 1: "", 2: TEXTS[2], 3: "a red square .", 4: "a photo of a red square"}
    for row, cleaned in wanted.items():
        features = plain(cleaned)
        count = len(features)
        assert out.mask[row].tolist() == [False] * (SLOTS - count) + [True] * count
        torch.testing.assert_close(out.features[row, SLOTS - count :], features, atol=1e-5, rtol=1e-5)
        assert not out.features[row, : SLOTS - count].any()
    assert int(out.mask[1].sum()) == 1 and int(out.mask[2].sum()) == SLOTS


def test_t5_cleans_as_the_released_program_does(folder: Path, plain: Plain) -> None:
    examples = json.loads((DATA / "llamagen" / "text_cleaning.json").read_text(encoding="utf-8"))
    assert len(examples) >= 10
    out = t5(folder, slots=120).encode([example["in"] for example in examples])
    for features, mask, example in zip(out.features, out.mask, examples, strict=True):
        torch.testing.assert_close(features[mask], plain(example["out"], slots=120), atol=1e-5, rtol=1e-5)


def test_t5_caption_does_not_feel_its_company(folder: Path) -> None:
    encoder = t5(folder)
    together = encoder.encode(TEXTS)
    for row, text in enumerate(TEXTS):
        alone = encoder.encode([text])
        assert torch.equal(alone.features[0], together.features[row])
        assert torch.equal(alone.mask[0], together.mask[row])


def test_t5_default_is_bf16_and_precision_is_part_of_the_identity(folder: Path, plain: Plain) -> None:
    encoder = text_t5.build(folder, digest="d", slots=SLOTS, width=WIDTH, device=CPU)
    out = encoder.encode(["a red circle"])
    assert out.features.dtype == torch.bfloat16
    expected = plain("a red circle", dtype=torch.bfloat16)
    assert (out.features[0, -4:].float() - expected.float()).abs().max() <= 0.05
    identities = {
        encoder.identity,
        t5(folder).identity,
        t5(folder, slots=11).identity,
        t5(folder, digest="e").identity,
    }
    assert len(identities) == 4
    assert t5(Path("elsewhere")).identity == t5(folder).identity, "a copy is the same"


def test_t5_folders_that_do_not_fit(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="width 16, the model wants 2048"):
        t5(folder, width=2048).encode(["a"])
    with pytest.raises(UserError, match="cannot be read as a T5 model"):
        t5(tmp_path).encode(["a"])


# --- words ----------------------------------------------------------------------------------------


def words(*, layer: bool = True) -> WordEncoder:
    torch.manual_seed(1)
    return WordEncoder(WordConfig(words=WORDS, slots=6, width=8, layer=layer)).eval()


def test_words_are_padded_on_the_left_and_counted_from_the_first() -> None:
    encoder = words(layer=False)
    out = encoder.encode(["a RED, circle.", "red", ""])
    assert out.features.shape == (3, 6, 8)
    assert out.mask.int().tolist() == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 1], [0] * 6]
    table, place = encoder.word.weight, encoder.place.weight
    number = WORDS.index("red") + 1
    torch.testing.assert_close(out.features[0, 4], table[number] + place[1])
    torch.testing.assert_close(out.features[1, 5], table[number] + place[0])
    assert not out.features[~out.mask].any()


@pytest.mark.parametrize("layer", [True, False])
def test_word_features_do_not_depend_on_padding_or_company(layer: bool) -> None:
    encoder = words(layer=layer)
    both = encoder.encode(["a red circle and a square", "two red"])
    narrow_ids = torch.tensor([[WORDS.index("two") + 1, WORDS.index("red") + 1]])
    narrow = encoder(narrow_ids, torch.ones(1, 2, dtype=torch.bool))
    torch.testing.assert_close(both.features[1, -2:], narrow[0], atol=1e-6, rtol=1e-6)
    swapped = encoder.encode(["red two"]).features[0, -2:].flip(0)
    assert (swapped - narrow[0]).abs().max() > 0.1, "order matters"


def test_a_layer_lets_words_see_each_other() -> None:
    for layer in (True, False):
        encoder = words(layer=layer)
        first, second = encoder.encode(["red circle", "red square"]).features[:, -2]
        assert torch.equal(first, second) != layer


def test_words_are_trainable_saved_and_read_back(tmp_path: Path) -> None:
    encoder = words().train()
    encoder(*encoder.tokenise(["a red circle"])).square().sum().backward()
    assert all(value.grad is not None and value.grad.any() for value in encoder.parameters())
    path = tmp_path / "text.safetensors"
    encoder.save(path)
    read = text_words.build(path, digest="d", slots=6, width=8, device=CPU)
    assert read.config == encoder.config and not read.training
    assert torch.equal(read.encode(["two red"]).features, encoder.encode(["two red"]).features)
    assert not any(value.requires_grad for value in read.parameters())
    assert read.identity != text_words.load(path, digest="e").identity
    with pytest.raises(UserError, match="gives 6 × 8 features, the model wants 6 × 9"):
        text_words.build(path, digest="d", slots=6, width=9, device=CPU)


def test_words_that_are_not_known_are_named() -> None:
    with pytest.raises(UserError) as caught:
        words().encode(["a red circel"])
    message = str(caught.value)
    assert "'circel' in 'a red circel'" in message and "Did you mean circle" in message
    assert all(word in message for word in WORDS), "the whole vocabulary"
    with pytest.raises(UserError, match="has 7 words, the text encoder reads 6"):
        words().encode(["a a a a a a a"])


def test_files_that_hold_no_words(tmp_path: Path) -> None:
    path = tmp_path / "text.safetensors"
    path.write_bytes(b"not a file")
    with pytest.raises(UserError, match="cannot be read"):
        text_words.load(path)
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="holds no word list"):
        text_words.load(path)


# --- random ---------------------------------------------------------------------------------------


def test_random_features_are_functions_of_the_caption() -> None:
    encoder = RandomText(slots=5, width=7, device=CPU)
    both = encoder.encode(["two words", "a caption of many more words than slots"])
    assert both.mask.int().tolist() == [[0, 0, 1, 1, 1], [1] * 5]
    assert torch.equal(both.features[:1], encoder.encode(["two words"]).features)
    assert not both.features[~both.mask].any() and 0.5 < float(both.features[1].std()) < 1.5


# --- cache ----------------------------------------------------------------------------------------


class Counting:
    """Notes what it is asked for."""

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder, self.identity = encoder, encoder.identity
        self.asked: list[str] = []

    def encode(self, texts: Sequence[str]) -> TextFeatures:
        self.asked += texts
        return self.encoder.encode(texts)


def cached(folder: Path, *, identity: str = "") -> tuple[CachedText, Counting]:
    inner = Counting(words())
    inner.identity = identity or inner.identity
    return CachedText(inner, folder, device=CPU), inner


def same(left: TextFeatures, right: TextFeatures) -> bool:
    features = torch.equal(left.features, right.features) and left.features.dtype == right.features.dtype
    return features and torch.equal(left.mask, right.mask) and left.texts == right.texts


def test_cache_returns_what_the_encoder_did_and_asks_once(tmp_path: Path) -> None:
    texts = ["a red circle", "two", "a red circle", ""]
    encoder, inner = cached(tmp_path)
    assert same(encoder.encode(texts), inner.encoder.encode(texts))
    assert inner.asked == ["a red circle", "two", ""]
    again, silent = cached(tmp_path)
    assert same(again.encode(texts[::-1]), inner.encoder.encode(texts[::-1])) and silent.asked == []
    other, asked = cached(tmp_path, identity="another encoder")
    other.encode(["two"])
    assert asked.asked == ["two"], "entries of two encoders are kept apart"


def test_cache_keeps_bf16_bits(folder: Path, tmp_path: Path) -> None:
    inner = text_t5.build(folder, digest="d", slots=SLOTS, width=WIDTH, device=CPU)
    expected = inner.encode(TEXTS)
    for _ in range(2):
        assert same(CachedText(inner, tmp_path, device=CPU).encode(TEXTS), expected)


@pytest.mark.parametrize("damage", ["flipped bit", "cut", "empty", "folder"])
def test_damaged_entry_is_made_again(tmp_path: Path, damage: str) -> None:
    encoder, _ = cached(tmp_path)
    expected = encoder.encode(["two"])
    path = encoder.path("two")
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.unlink()
    if damage == "folder":
        path.mkdir()
    else:
        path.write_bytes({"flipped bit": bytes(content), "cut": bytes(content[:-5]), "empty": b""}[damage])
    again, asked = cached(tmp_path)
    assert same(again.encode(["two"]), expected) and asked.asked == ["two"]
    third, asked = cached(tmp_path)
    assert same(third.encode(["two"]), expected) and asked.asked == (["two"] if damage == "folder" else [])


def _fill(folder: str) -> bytes:
    encoder, _ = cached(Path(folder))
    texts = [f"{first} {second}" for first in WORDS for second in WORDS]
    return encoder.encode(texts).features.numpy().tobytes()


def test_processes_share_a_cache(tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        first, second = pool.map(_fill, [str(tmp_path)] * 2)
    assert first == second == _fill(str(tmp_path))
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".features"]
