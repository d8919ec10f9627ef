"""A plain function as a reward: what it is given, what its card says, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

import alignbench
from alignbench.registry.plugins import load_registry
from alignbench.rewards.build import BuiltDistance, build
from tests.helpers.reward_toys import request

CPU = torch.device("cpu")
PAGE = (Path(__file__).parents[2] / "docs" / "adding" / "reward.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def cards(tmp_path_factory: pytest.TempPathFactory) -> Any:
    file = tmp_path_factory.mktemp("functions") / "brightness.py"
    file.write_text("\n".join(re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)), encoding="utf-8")
    return load_registry([file])


def test_a_function_scores_images_between_minus_one_and_one(cards: Any) -> None:
    scores = build("brightness", cards, CPU, image_size=8).score(request())
    assert torch.allclose(scores.values, (2 * request().images - 1).mean(dim=(1, 2, 3)))
    assert scores.valid.all()
    card = cards.reward("brightness")
    assert (card.title, card.direction) == ("brightness", "higher")
    assert (card.scope, card.differentiable) == ("image", False)


def test_one_that_asks_for_originals_is_a_distance_with_options_and_gradients(cards: Any) -> None:
    reward = build("contrast-loss(power=1)", cards, CPU, image_size=8)
    assert isinstance(reward, BuiltDistance)
    images, originals = 2 * request(4).images - 1, 2 * request(2, seed=1).images - 1
    expected = images.std(dim=(1, 2, 3)) - originals.std(dim=(1, 2, 3)).repeat_interleave(2)
    images.requires_grad_()
    distances = reward.distance(images, reward.prepare(originals), repeats=2)
    assert torch.allclose(distances, expected.abs()) and distances.requires_grad
    both = request(2, reference=request(2, seed=1).images)
    expected = ((2 * both.images - 1).std(dim=(1, 2, 3)) - originals.std(dim=(1, 2, 3))).abs()
    assert torch.allclose(-reward.score(both).values, expected)


def test_the_class_of_the_page_takes_its_options(cards: Any) -> None:
    images = request().images
    expected = 3 * (images[..., 1:] - images[..., :-1]).square().mean(dim=(1, 2, 3))
    scores = build("sharpness(power=2)|scale(3)", cards, CPU, image_size=8).score(request())
    assert torch.allclose(scores.values, expected)


def test_prompts_and_labels_are_filled_by_name() -> None:
    @cast(Callable[..., Any], alignbench.reward(title="Reader"))
    def reader(images: Tensor, labels: Tensor, prompts: tuple[str, ...]) -> Tensor:
        return labels + torch.tensor([float(len(text)) for text in prompts])

    assert reader.card["needs"] == ["label", "text"] and reader.card["title"] == "Reader"
    given = request(3, texts=("a", "bb", "ccc"))
    assert given.labels is not None
    assert torch.equal(reader(CPU).score(given).values, given.labels + torch.tensor([1.0, 2.0, 3.0]))


def test_another_shape_is_refused() -> None:
    @alignbench.reward
    def pixels(images: Tensor) -> Tensor:
        return images.mean(dim=1)

    with pytest.raises(ValueError, match=r"returned \[5, 8, 8\] for 5 images"):
        pixels(CPU).score(request())
