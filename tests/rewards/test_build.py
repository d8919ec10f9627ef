"""From a specification to a reward: options, texts, batches, masks, direction, placement."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from alignbench.errors import RunFailed, UserError
from alignbench.registry.class_names import class_names
from alignbench.registry.lookup import Registry
from alignbench.registry.reward_spec import resolve
from alignbench.registry.schema import DatasetCard, RewardCard
from alignbench.rewards.build import BuiltDistance, BuiltReward, build
from alignbench.rewards.transforms import TRANSFORMS
from tests.helpers.reward_toys import BUILT_IN, registry, request

CPU = torch.device("cpu")
REGISTRY = Registry([("built-in", BUILT_IN)])


def built(text: str, cards: Registry = REGISTRY, **changes: Any) -> BuiltReward:
    reward = build(text, cards, CPU, **{"image_size": 8, **changes})
    assert isinstance(reward, BuiltReward)
    return reward


# --- specifications -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("pixel-msee", "no reward named 'pixel-msee'. Did you mean pixel-mse"),
        ("pixel-mse(btach=2)", "has no option 'btach'. Did you mean batch"),
        ("pixel-mse(batch=two)", "batch: 'two' is not a whole number"),
        ("pixel-mse(batch=0)", "batch: 0 is below 1"),
        ("pixel-mse(class_prompt={})", "has no option 'class_prompt'"),
        ("clip-score(class_prompt=photo)", "class_prompt must hold {} once"),
        ("pixel-mse|scael(2)", "no transform named 'scael'"),
        ("pixel-mse(placement=gpu)", "placement 'gpu' cannot be used"),
        ("pixel-mse(placement=cuda:99)", "placement 'cuda:99' cannot be used"),
        ("lpips-vgg", "'lpips-vgg' needs images of at least 16 px; these have 8 px"),
    ],
)
def test_what_cannot_be_built_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        build(text, REGISTRY, CPU, image_size=8)


def test_options_have_the_types_of_their_card_and_name_the_networks() -> None:
    resolved = resolve("vlm-judge(min_mass=1,question=Is it {}?,batch=3,timeout=2)", REGISTRY)
    assert resolved.options["min_mass"] == 1.0 and isinstance(resolved.options["min_mass"], float)
    assert resolved.options["question"] == "Is it {}?"
    assert (resolved.common["batch"], resolved.common["timeout"]) == (3, 2.0)
    assert resolve("clip-score", REGISTRY).networks == ["openai/clip-vit-large-patch14"]
    assert resolve("clip-score(model=a/b)|scale(5)", REGISTRY).networks == ["a/b"]
    with pytest.raises(ValueError, match=r"'{modell}' names no option"):
        card = REGISTRY.reward("clip-score").model_dump()
        RewardCard.model_validate({**card, "networks": ["{modell}"]})


def test_a_missing_package_is_named_with_the_extra_before_anything_is_imported(tmp_path: Path) -> None:
    cards = registry(tmp_path, "NoSuchThing", more='packages = ["torch", "not_installed"]\nextra = "more"\n')
    with pytest.raises(UserError) as caught:
        build("toy", cards, CPU, image_size=8)
    assert caught.value.what == "reward 'toy' needs not_installed, not installed here"
    assert caught.value.fix == "pip install 'alignbench[more]'"


# --- scores ---------------------------------------------------------------------------------------


def test_larger_is_better_whatever_the_direction_of_the_card(tmp_path: Path) -> None:
    images = request().images
    higher = built("toy", registry(tmp_path / "a", "Brightness")).score(request())
    lower = built("toy|scale(2)", registry(tmp_path / "b", "Brightness", direction="lower")).score(request())
    assert torch.allclose(higher.values, images.mean(dim=(1, 2, 3)))
    assert torch.allclose(lower.values, -2 * images.mean(dim=(1, 2, 3)))
    assert higher.valid.all() and lower.valid.all()


def test_distances_keep_their_sign_and_scores_turn_it() -> None:
    reward = built("pixel-mse|scale(10)")
    assert isinstance(reward, BuiltDistance)
    both = request(reference=request(seed=1).images)
    assert both.reference is not None
    expected = 10 * (2 * both.images - 2 * both.reference).square().mean(dim=(1, 2, 3))
    prepared = reward.prepare(2 * both.reference - 1)
    assert torch.allclose(reward.distance(2 * both.images - 1, prepared, repeats=1), expected)
    assert torch.allclose(reward.score(both).values, -expected)


def test_requests_are_cut_into_batches_and_put_together_again(tmp_path: Path) -> None:
    reward = built("toy(batch=2)", registry(tmp_path, "Brightness"))
    given = request(5, texts=tuple("abcde"), metadata={"place": list(range(5))}, reference=request().images)
    scores = reward.score(given)
    asked = reward.placed.raw.asked  # type: ignore[attr-defined]
    assert [len(part.images) for part in asked] == [2, 2, 1]
    assert [part.texts for part in asked] == [("a", "b"), ("c", "d"), ("e",)]
    assert [part.metadata["place"] for part in asked] == [[0, 1], [2, 3], [4]]
    assert torch.equal(torch.cat([part.group for part in asked]), given.group)
    assert given.reference is not None
    assert torch.equal(torch.cat([part.reference for part in asked]), given.reference)
    assert torch.allclose(scores.values, given.images.mean(dim=(1, 2, 3)))
    assert len(reward.score(request(0)).values) == 0


@pytest.mark.parametrize(
    "chain", ["", "|scale(2)|shift(1)", "|levels(0,2,1)", "|clip(0,9)|quantise(1)|negate"]
)
def test_failed_and_infinite_scores_are_masked_and_never_zero(tmp_path: Path, chain: str) -> None:
    scores = built(f"toy(batch=2){chain}", registry(tmp_path, "moody")).score(request(5))
    assert scores.valid.tolist() == [True, False, True, False, True]
    assert scores.values.isnan().tolist() == [False, True, False, True, False]


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (torch.zeros(2, 8, 8, 3), r"\[N, 3, H, W\]"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.float64), "float32 in"),
        (torch.full((2, 3, 8, 8), 255.0), "these span 255"),
        (torch.full((2, 3, 8, 8), -1.0), "these span -1"),
        (torch.full((2, 3, 8, 8), float("nan")), "these span nan"),
    ],
)
def test_images_of_another_form_or_range_are_errors_naming_the_reward(images: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=f"reward class-logprob-digits: .*{reason}"):
        built("class-logprob-digits").score(request(2, images=images))


def test_parts_that_do_not_fit_are_named() -> None:
    reward = built("class-logprob-digits")
    with pytest.raises(ValueError, match="5 images came with 4 group, 3 texts"):
        reward.score(request(5, group=torch.arange(4), texts=("a", "b", "c")))
    with pytest.raises(ValueError, match="differ in shape"):
        reward.score(request(5, reference=request(4).images))
    # A decoder may leave the range a little.
    assert reward.score(request(images=request().images * 1.6 - 0.3)).valid.all()


# --- texts ----------------------------------------------------------------------------------------


@pytest.fixture
def reading(tmp_path: Path) -> Registry:
    """With a toy that reads texts."""
    return registry(tmp_path, "Reader", more='needs = ["text"]\n')


def test_texts_are_written_from_class_names_only_where_there_are_none(reading: Registry) -> None:
    names = ("a", "bee", "camel", "dromedary", "eel")
    reward = built("toy(class_prompt=this is {}!)", reading, class_names=lambda: names)
    reward.score(request(3))
    reward.score(request(2, texts=("own", "words")))
    written, own = reward.placed.raw.asked  # type: ignore[attr-defined]
    assert written.texts == ("this is a!", "this is bee!", "this is camel!")
    assert own.texts == ("own", "words")
    assert resolve("toy", reading).common["class_prompt"] == "a photo of {}"


def test_class_names_are_asked_for_only_where_a_text_is_read(reading: Registry) -> None:
    def refuse() -> tuple[str, ...]:
        raise AssertionError

    built("pixel-mse", class_names=refuse)
    with pytest.raises(AssertionError):
        built("toy", reading, class_names=refuse)


def test_what_a_request_lacks_is_named(reading: Registry) -> None:
    plain, bare = request(), replace(request(), labels=None)
    for reward, given, reason in (
        (built("toy", reading), plain, r"'toy' reads a text, .* classes no names"),
        (built("toy", reading, class_names=lambda: ("a",)), bare, "'toy' reads a text, and these samples"),
        (built("class-logprob-digits"), bare, "'class-logprob-digits' needs class labels"),
        (built("pixel-mse"), plain, "'pixel-mse' compares with the real image"),
    ):
        with pytest.raises(UserError, match=reason):
            reward.score(given)


def test_dataset_cards_give_names_or_say_where_they_are() -> None:
    assert class_names(REGISTRY.dataset("digits8"))[3] == "the digit three"
    imagenet = class_names(REGISTRY.dataset("imagenet"))
    assert (len(imagenet), imagenet[0], imagenet[207]) == (1000, "tench", "Golden Retriever")
    assert class_names(REGISTRY.dataset("folder")) == []
    card = REGISTRY.dataset("imagenet").model_dump()
    with pytest.raises(UserError, match=r"class names of .*not_installed.*alignbench\[rewards\]"):
        class_names(DatasetCard.model_validate({**card, "class_names": "not_installed.names:NAMES"}))


# --- gradients and placement ----------------------------------------------------------------------


def gradient(reward: BuiltReward) -> bool:
    given = request()
    images = given.images.requires_grad_()
    return reward.score(replace(given, images=images)).values.requires_grad


def test_gradients_pass_only_where_card_chain_and_placement_allow(tmp_path: Path) -> None:
    cards = registry(tmp_path, "Brightness")
    assert gradient(built("toy|scale(2)|clip(0,1)", cards))
    assert not gradient(built("toy|quantise(0.1)", cards))
    assert not gradient(built("toy(placement=offload)", cards))
    assert not gradient(built("toy", registry(tmp_path, "Brightness", differentiable="false")))
    with torch.no_grad():
        assert not gradient(built("toy", cards))


@pytest.mark.parametrize("text", ["pixel-mse|quantise(0.1)", "pixel-mse(placement=offload)"])
def test_a_distance_without_gradient_says_so_when_one_is_wanted(text: str) -> None:
    reward = built(text)
    assert isinstance(reward, BuiltDistance)
    images = request().images
    prepared = reward.prepare(images)
    assert len(reward.distance(images, prepared, repeats=1)) == 5
    with pytest.raises(UserError, match="passes no gradient on"):
        reward.distance(images.clone().requires_grad_(), prepared, repeats=1)


def test_offloaded_weights_are_lent_for_the_call_and_come_back_after_errors(tmp_path: Path) -> None:
    reward = built("toy(placement=offload)", registry(tmp_path, "Gap", scope="distance", direction="lower"))
    assert isinstance(reward, BuiltDistance)
    moves = reward.placed.raw.moves  # type: ignore[attr-defined]
    assert moves == []
    there, back = str(reward.placed.device), "cpu"
    reward.score(request(reference=request(seed=1).images))
    assert moves == [there, back]
    with pytest.raises(RunFailed, match="reward 'toy' failed: RuntimeError"):
        reward.distance(torch.zeros(2, 3, 8, 8), torch.zeros(3, 3, 8, 8), repeats=1)
    assert moves == [there, back] * 2


def test_specs_that_differ_in_their_transforms_share_a_network() -> None:
    shared: dict[tuple[object, ...], Any] = {}
    name = "class-logprob-digits"
    texts = (name, f"{name}(batch=2)|clip(-2.5,0)", f"{name}(placement=cpu)")
    one, other, elsewhere = (built(text, shared=shared) for text in texts)
    assert one.placed.raw is other.placed.raw and one.placed.raw is not elsewhere.placed.raw
    assert other.score(request()).values.min() >= -2.5 > one.score(request()).values.min()
    assert built(name).placed.raw is not one.placed.raw
    # A device of its own gets the images, and the scores come home.
    assert elsewhere.placed.device == CPU
    assert torch.equal(elsewhere.score(request()).values, one.score(request()).values)


PAGE = (BUILT_IN.parent / "docs" / "rewards.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", REGISTRY.names("rewards"))
def test_the_documentation_says_what_the_card_says(name: str) -> None:
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{name}` |"))
    _, _, reference, reads, gradient, better, _, licence, _ = (cell.strip() for cell in row.split("|"))
    card = REGISTRY.reward(name)
    assert (reference == "the real image") == (card.scope == "distance")
    assert reads == {"": "–", "text": "text", "label": "class", "metadata": "metadata"}["".join(card.needs)]
    assert (gradient == "yes", better, licence) == (card.differentiable, card.direction, card.licence)


def test_every_transform_and_common_option_is_documented() -> None:
    assert not [name for name in TRANSFORMS if f"`{name}" not in PAGE]
    assert all(f"`{name}`" in PAGE for name in resolve("clip-score", REGISTRY).common)
