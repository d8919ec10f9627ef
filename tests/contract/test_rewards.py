"""What every reward card promises, checked without naming any of them.

Rewards whose weights are not here stand on tiny random networks of the same classes:
`tests.helpers.tiny_rewards`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alignbench import api
from alignbench.data.shapes_scenes import SIZE, Thing, draw
from alignbench.errors import UserError
from alignbench.evaluators.geneval import colours, mask2former, shapes
from alignbench.evaluators.geneval import reward as geneval
from alignbench.registry.lookup import Registry, import_target
from alignbench.registry.schema import RewardCard
from alignbench.rewards.build import BuiltDistance, BuiltReward, Placed, build
from alignbench.rewards.remote import serve
from tests.helpers.tiny_rewards import TINY
from tests.nets.test_image_reward import save_small
from tests.rewards.test_remote import running

REGISTRY = Registry([("built-in", Path(__file__).parent.parent.parent / "registry")])
NAMES = [name for name in REGISTRY.names("rewards") if REGISTRY.reward(name).scope != "set"]
"""What those of a set promise: tests/rewards/test_loo_fd.py, tests/methods/test_set_rewards.py."""
CPU = torch.device("cpu")
COUNT = 5
TOLERANCE = 2e-5
"""Relative to the largest score: float32 sums in another order."""


def captioned_shapes(side: int) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Five scenes that show ever more of one caption, [5, 3, side, side], cut or padded with black."""
    circles = [[], [("circle", "red")], [("circle", "white")], [("circle", "white")], [("circle", "white")]]
    squares = [[], [], [], [("square", "red")], [("square", "green")]]
    scenes = [
        draw([Thing(*kind, row, 0) for row, kind in zip((0, 2), (*circle, *square), strict=False)])
        for circle, square in zip(circles, squares, strict=True)
    ]
    pixels = torch.from_numpy(np.stack(scenes)).permute(0, 3, 1, 2)[..., :side, :side].float() / 255
    room = (0, max(0, side - SIZE), 0, max(0, side - SIZE))
    return torch.nn.functional.pad(pixels, room), ("a white circle and a green square",) * 5


def counted_shapes(side: int) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Five scenes with none to four of the things of `METADATA`, of a side as above."""
    names, places = [clause["class"] for clause in METADATA["include"]], [(0, 0), (0, 2), (2, 0), (2, 2)]
    things = [Thing(name, "white", *place) for name, place in zip(names, places, strict=True)]
    pixels = torch.from_numpy(np.stack([draw(things[:count]) for count in range(COUNT)]))
    room = (0, side - SIZE, 0, side - SIZE)
    return torch.nn.functional.pad(pixels.permute(0, 3, 1, 2).float() / 255, room), ()


def shapes_geneval(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """GenEval's rules on the exact detector of the shapes."""
    patch.setattr(geneval, "verify_asset", lambda status: None)
    patch.setattr(mask2former, "build_official", lambda **_: shapes.ShapesDetector(batch=2))
    patch.setattr(colours, "build", lambda **_: shapes.ShapesColours())


STAND_INS = {
    **TINY,
    "geneval-detector": shapes_geneval,
    "imagereward": lambda folder, patch: save_small(folder),
}
METADATA: dict[str, Any] = {
    "tag": "two_object",
    "include": [{"class": name, "count": 1} for name in ("circle", "square", "cross", "triangle")],
}
REQUESTS: dict[str, Callable[[int], tuple[torch.Tensor, tuple[str, ...]]]] = {
    "geneval-detector": counted_shapes,
    "shapes-detector": captioned_shapes,
}
"""{card: (images, captions) of a side that it understands}, for rewards that take no other language."""


@dataclass(frozen=True)
class Case:
    name: str
    card: RewardCard
    options: str
    """Those that a tiny network needs."""
    side: int

    def build(self, more: str = "", side: int | None = None) -> BuiltReward:
        options = ",".join(filter(None, [self.options, more]))
        reward = build(
            f"{self.name}({options})" if options else self.name,
            REGISTRY,
            CPU,
            class_names=lambda: [f"thing {number}" for number in range(10)],
            image_size=side or self.side,
        )
        assert isinstance(reward, BuiltReward)
        return reward

    def request(self) -> api.ScoreRequest:
        """Everything a reward may ask for; all rows differ."""
        numbers = torch.Generator().manual_seed(7)
        shape = (2, COUNT, 3, self.side, self.side)
        images, reference = torch.rand(shape, generator=numbers)
        images, texts = REQUESTS[self.name](self.side) if self.name in REQUESTS else (images, ())
        return api.ScoreRequest(
            images=images,
            group=torch.arange(COUNT),
            labels=torch.arange(COUNT) + 3,
            texts=texts,
            reference=reference,
            metadata={"prompt": [METADATA] * COUNT},
        )


@pytest.fixture(scope="module", params=NAMES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    name = request.param
    card = REGISTRY.reward(name)
    with pytest.MonkeyPatch.context() as patch:
        make = STAND_INS.get(name)
        options = make(tmp_path_factory.mktemp("reward"), patch) if make else ""
        # Without weights here and without a tiny stand-in, building fails, and so does every test below.
        yield Case(name, card, options or "", side=max(32, card.min_size))


@pytest.fixture(scope="module")
def reward(case: Case) -> BuiltReward:
    return case.build()


def rows(given: api.ScoreRequest, order: list[int]) -> api.ScoreRequest:
    assert given.labels is not None and given.reference is not None
    return replace(
        given,
        images=given.images[order],
        group=given.group[order],
        labels=given.labels[order],
        texts=tuple(given.texts[row] for row in order) if given.texts else (),
        reference=given.reference[order],
        metadata={name: [values[row] for row in order] for name, values in given.metadata.items()},
    )


def close(values: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((values - expected).abs().max() <= TOLERANCE * max(1.0, expected.abs().max().item()))


def test_the_card_is_complete(case: Case) -> None:
    card = case.card
    assert card.title and card.licence and card.summary.endswith(".")
    assert bool(card.packages) == bool(card.extra), "packages beyond a plain installation come with an extra"
    assert all(option.doc.endswith(".") for option in card.options.values())
    assert card.scope == "distance" or card.networks, "an image is judged by some network"
    assert not (case.name in STAND_INS and not card.files), "weights from elsewhere are listed in files"
    device, *options = inspect.signature(import_target(card.target)).parameters.values()
    assert device.name == "device", "the target takes the device first"
    assert {option.name for option in options} == set(card.options), "the target takes every option"
    assert all(option.kind is option.KEYWORD_ONLY for option in options)


def test_scores_are_finite_repeatable_and_tell_images_apart(case: Case, reward: BuiltReward) -> None:
    scores = reward.score(case.request())
    assert scores.values.shape == scores.valid.shape == (COUNT,)
    assert scores.values.dtype == torch.float32 and scores.valid.dtype == torch.bool
    assert scores.valid.all() and scores.values.isfinite().all()
    assert len(set(scores.values.tolist())) == COUNT
    given = case.request()
    before, state = given.images.clone(), torch.get_rng_state()
    first, again = reward.score(given).values, reward.score(given).values
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), state), "torch's global generator was used"
    assert torch.equal(given.images, before), "the images were changed"


def test_an_image_has_the_same_score_alone_and_in_any_company(case: Case, reward: BuiltReward) -> None:
    given = case.request()
    together = reward.score(given).values
    alone = torch.cat([reward.score(rows(given, [row])).values for row in range(COUNT)])
    assert close(alone, together)
    order = [3, 0, 4, 1, 2, 0]
    assert close(reward.score(rows(given, order)).values, together[order])
    assert close(case.build("batch=2").score(given).values, together)


def test_gradients_reach_the_images_alone_or_there_are_none(case: Case, reward: BuiltReward) -> None:
    given = case.request()
    images = given.images.requires_grad_()
    values = reward.score(replace(given, images=images)).values
    assert values.requires_grad == case.card.differentiable
    if case.card.differentiable:
        gradient = torch.autograd.grad(values.sum(), images)[0]
        assert gradient.isfinite().all()
        assert (gradient.flatten(start_dim=1).abs().amax(dim=1) > 0).all()
    with torch.no_grad():
        assert close(reward.score(given).values, values.detach())
    # No parameter reachable from the reward gets a gradient.
    values = reward.score(replace(given, images=images)).values
    leaves, seen, todo = [], set(), [values.grad_fn]
    while todo:
        node: Any = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaves += [node.variable] if hasattr(node, "variable") else []
        todo += [following for following, _ in node.next_functions]
    assert [id(leaf) for leaf in leaves] == ([id(given.images)] if case.card.differentiable else [])


def test_a_failed_score_is_masked_and_its_neighbours_stay(case: Case, reward: BuiltReward) -> None:
    class Failing:
        def score(self, request: api.ScoreRequest) -> api.Scores:
            scores = reward.placed.raw.score(request)
            values, valid = scores.values.clone(), scores.valid.clone()
            valid[request.group == 1] = False
            values[request.group == 2] = torch.inf
            return api.Scores(values, valid)

    given = case.request()
    failing = replace(reward, placed=Placed(Failing(), CPU))
    expected, scores = reward.score(given), failing.score(given)
    assert scores.valid.tolist() == [True, False, False, True, True]
    assert scores.values.isnan().tolist() == [False, True, True, False, False]
    assert torch.equal(scores.values[scores.valid], expected.values[scores.valid])


def test_what_it_lacks_and_wrong_images_are_errors_naming_the_reward(case: Case, reward: BuiltReward) -> None:
    bare = api.ScoreRequest(images=case.request().images, group=torch.arange(COUNT))
    if case.card.needs or case.card.scope == "distance":
        with pytest.raises(UserError, match=f"reward '{case.name}'"):
            reward.score(bare)
    else:
        assert reward.score(bare).valid.all()
    given = case.request()
    for wrong in (given.images.byte(), given.images.double(), given.images * 255, given.images[0]):
        with pytest.raises(ValueError, match=f"reward {case.name}: images"):
            reward.score(replace(given, images=wrong))


def test_the_smallest_size_is_true(case: Case) -> None:
    small = replace(case, side=case.card.min_size)
    assert small.build().score(small.request()).valid.all()
    if case.card.min_size > 1:
        with pytest.raises(UserError, match=f"{case.name}.* at least {case.card.min_size} px"):
            case.build(side=case.card.min_size - 1)


def test_placements_change_no_score(case: Case, reward: BuiltReward) -> None:
    given = case.request()
    expected = reward.score(given).values
    for where in ("offload", "cpu"):
        assert close(case.build(f"placement={where}").score(given).values, expected)
    with running(
        serve(reward.placed.raw, "127.0.0.1", 0, name=case.name, options=reward.resolved.options)
    ) as url:
        assert close(case.build(f"placement={url}").score(given).values, expected)


def test_distances_share_references_and_agree_with_their_scores(case: Case, reward: BuiltReward) -> None:
    assert isinstance(reward, api.Distance) == (case.card.scope == "distance")
    if not isinstance(reward, BuiltDistance):
        return
    given = case.request()
    assert given.reference is not None
    images, reference = 2 * given.images - 1, 2 * given.reference - 1
    apart = reward.distance(images, reward.prepare(reference), repeats=1)
    assert close(-apart, reward.score(given).values)
    shared = reward.distance(images[:4], reward.prepare(reference[:2]), repeats=2)
    repeated = reference[:2].repeat_interleave(2, dim=0)
    assert close(shared, reward.distance(images[:4], reward.prepare(repeated), repeats=1))
    same = reward.distance(reference, reward.prepare(reference), repeats=1)
    assert (same.abs() < TOLERANCE).all() and (apart > 100 * TOLERANCE).all()
