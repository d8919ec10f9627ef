"""Procedural scenes: what is drawn, what is asked, and whether detector and reward judge it rightly."""

from __future__ import annotations

import itertools
import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from alignbench.api import ImageBatch, Prompt, ScoreRequest
from alignbench.data import shapes_detector, shapes_scenes
from alignbench.data.dataset import Captioned
from alignbench.data.prompts import read_prompts
from alignbench.data.shapes import PROMPT_FILES, prompt_file
from alignbench.data.shapes_scenes import COLOURS, SHAPES, TASKS, Scene, Thing
from alignbench.evaluators.geneval import evaluator
from alignbench.evaluators.geneval.rules import COUNTING_THRESHOLD, Demand, demand_of
from alignbench.files import package_file
from alignbench.registry.lookup import Registry
from alignbench.rewards.build import build
from alignbench.rewards.shapes import COUNTING_MATCH
from tests.helpers.data_sets import opened, refused

REGISTRY = Registry.default()
DIGESTS = {
    "train": "sha256:2410b8ad878160ec91410a5501decf605923e8f3ffee8793547e1ed597c29a44",
    "validation": "sha256:f97579f8ab83f98f7018d772114ad41791f153af388788644b5f0ee4f6af12af",
    "test": "sha256:c9df2729e04019c14558883fdd99ffd9135f19d9181206c544d20fa0573ba14c",
}
CPU = torch.device("cpu")
SOME = [shapes_scenes.scene(7, "test", number) for number in range(300)]


def pixels(some: list[Scene]) -> np.ndarray:
    return np.stack([shapes_scenes.draw(scene.things) for scene in some])


def judge(images: np.ndarray, texts: list[str]) -> np.ndarray:
    """The evaluator's verdicts, [n] bool."""
    requests = [shapes_scenes.by_text()[text] for text in texts]
    prompts = [Prompt(request.text, request.tag, request.metadata()) for request in requests]
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
    card = REGISTRY.evaluator("geneval-shapes")
    defaults = {key: option.default for key, option in card.options.items()}
    geneval = evaluator.build(card, options=defaults, assets={}, device=CPU)
    return geneval.measure(ImageBatch(ids=range(len(images)), images=tensor, prompts=prompts))["correct"]


def verdict(text: str, *things: tuple[str, str, int, int]) -> bool:
    return bool(judge(shapes_scenes.draw([Thing(*thing) for thing in things])[None], [text])[0])


# --- scenes and captions --------------------------------------------------------------------------


def test_content_never_changes() -> None:
    for split, count in (("train", 6000), ("validation", 600), ("test", 600)):
        dataset = opened("shapes", split, image_size=shapes_scenes.SIZE)
        assert isinstance(dataset, Captioned) and len(dataset) == len(dataset.captions) == count
        assert (np.bincount(dataset.labels) == count // 6).all()
        assert dataset.digest == DIGESTS[split]
        image, label = dataset.load(5)
        assert image.shape == (20, 20, 3) and image.dtype == np.uint8 and TASKS[label] == "color_attr"
    assert "20×20 images, the model works at 16×16" in refused(opened, "shapes", "test", image_size=16)


def test_a_scene_is_a_function_of_its_address() -> None:
    places = [(0, "a", 3), (0, "a", 3), (0, "a", 9), (1, "a", 3), (0, "b", 3)]
    first, again, *others = (shapes_scenes.scene(*place) for place in places)
    assert first == again and first not in others


def test_the_language_is_closed_and_unambiguous() -> None:
    counts = {tag: len(shapes_scenes.requests(tag)) for tag in TASKS}
    assert counts == dict(zip(TASKS, (5, 20, 15, 30, 80, 600), strict=True))
    assert len(shapes_scenes.by_text()) == 750 and len(shapes_scenes.words()) == 26
    policy = REGISTRY.model("shapes-tiny").policy
    assert max(len(text.split()) for text in shapes_scenes.by_text()) == policy.condition_tokens


def test_scenes_hold_what_is_asked_and_nothing_else() -> None:
    for scene in SOME:
        wanted = Counter({clause["class"]: clause["count"] for clause in scene.request.include})
        assert Counter(thing.shape for thing in scene.things) == wanted
        for a, b in itertools.combinations(scene.things, 2):
            assert max(abs(a.row - b.row), abs(a.column - b.column)) >= 2
        for clause, thing in zip(scene.request.include, scene.things, strict=False):
            assert thing.colour == clause.get("color", thing.colour)
    image = shapes_scenes.draw([Thing("ring", "purple", 3, 2)])
    drawn = np.asarray(image.any(axis=2))
    assert drawn[12:19, 8:15].sum() == drawn.sum() == shapes_scenes.mask("ring").sum() == 28
    assert set(map(tuple, image.reshape(-1, 3).tolist())) == {(0, 0, 0), (255, 0, 255)}


def test_every_request_is_a_geneval_prompt() -> None:
    for request in shapes_scenes.by_text().values():
        demand = demand_of(request.metadata(), class_names=list(SHAPES), colour_names=list(COLOURS))
        assert isinstance(demand, Demand) and demand.tag == request.tag in evaluator.TASKS


# --- the detector ---------------------------------------------------------------------------------


def test_scenes_as_drawn_are_found_exactly_and_judged_right_in_every_task() -> None:
    for scene, found in zip(SOME, shapes_detector.find(pixels(SOME)), strict=True):
        image = shapes_scenes.draw(scene.things)
        assert all(item.match == 1.0 for item in found) and len(found) == len(scene.things)
        assert {
            (list(SHAPES)[item.shape], shapes_detector.colour_of(image, item.mask), item.box[1], item.box[0])
            for item in found
        } == {(thing.shape, thing.colour, 4 * thing.row, 4 * thing.column) for thing in scene.things}
    assert {scene.request.tag for scene in SOME} == set(TASKS)
    assert judge(pixels(SOME), [scene.request.text for scene in SOME]).all()


def test_things_are_found_at_any_pixel() -> None:
    image = np.zeros((31, 26, 3), dtype=np.uint8)
    image[23:30, 1:8][shapes_scenes.mask("cross")] = (0, 255, 0)
    image[0:7, 19:26][shapes_scenes.mask("triangle")] = (255, 255, 255)
    found = shapes_detector.find(image[None])[0]
    assert {(list(SHAPES)[item.shape], item.box, item.match) for item in found} == {
        ("cross", (1, 23, 8, 30), 1.0),
        ("triangle", (19, 0, 26, 7), 1.0),
    }


WRONG = [
    ("a ring", [("circle", "red", 0, 0)]),
    ("a square and a ring", [("square", "red", 0, 0)]),
    ("two squares", [("square", "red", 0, 0)]),
    ("two squares", [("square", "red", 0, 0), ("square", "blue", 0, 2), ("square", "blue", 2, 0)]),
    ("two squares", [("square", "red", 0, 0), ("circle", "red", 2, 2)]),
    ("a red square", [("square", "yellow", 0, 0)]),
    ("a red square", [("circle", "red", 0, 0)]),
    ("a cross left of a ring", [("cross", "red", 0, 2), ("ring", "red", 0, 0)]),
    ("a cross above a ring", [("cross", "red", 0, 0), ("ring", "red", 0, 2)]),
    ("a red square and a blue ring", [("square", "blue", 0, 0), ("ring", "red", 2, 2)]),
    ("a red square and a blue ring", [("square", "red", 0, 0), ("ring", "red", 2, 2)]),
]


def test_wrong_scenes_are_judged_wrong() -> None:
    for text, things in WRONG:
        assert not verdict(text, *things), text
        assert not judge(np.zeros((1, 20, 20, 3), dtype=np.uint8), [text])[0]


def test_colours_that_do_not_agree_are_no_colour() -> None:
    image = shapes_scenes.draw([Thing("square", "red", 1, 1)])
    image[4:7, 4:11] = (0, 0, 255)  # 21 of 49 pixels
    found = shapes_detector.find(image[None])[0]
    assert [item.match for item in found] == [1.0]
    assert shapes_detector.colour_of(image, found[0].mask) == shapes_detector.NO_COLOUR
    assert not judge(image[None], ["a red square"])[0] and judge(image[None], ["a square"])[0]


def test_shapes_are_further_apart_than_a_match_may_be() -> None:
    for a, b in itertools.combinations(map(shapes_scenes.mask, SHAPES), 2):
        assert (a & b).sum() / (a | b).sum() < shapes_detector.SMALLEST_MATCH - 0.04


def test_foreground_of_another_form_is_no_shape() -> None:
    bar = np.zeros((20, 20, 3), dtype=np.uint8)
    bar[8:11, 2:18] = 255
    full = np.full((20, 20, 3), 255, dtype=np.uint8)
    assert shapes_detector.find(np.stack([bar, full])) == [[], []]


def test_the_detector_bears_blur_and_noise() -> None:
    some = SOME[:120]
    noise = np.random.default_rng(0).normal(0, 30, (len(some), 20, 20, 3))
    blurred = np.stack(
        [np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(0.5))) for image in pixels(some)]
    )
    spoilt = np.clip(blurred + noise, 0, 255).astype(np.uint8)
    assert judge(spoilt, [scene.request.text for scene in some]).mean() > 0.95


def test_nearest_colours_are_those_of_a_plain_search() -> None:
    image = np.random.default_rng(1).integers(0, 256, (9, 8, 3), dtype=np.uint8)
    palette = [(0, 0, 0), *COLOURS.values()]
    found = shapes_detector.nearest_colour(image)
    for y, x in np.ndindex(9, 8):
        distances = [
            sum((int(p) - c) ** 2 for p, c in zip(image[y, x], entry, strict=True)) for entry in palette
        ]
        assert found[y, x] == distances.index(min(distances))


def test_scores_say_shapes_and_reward_and_metrics_name_the_same_detector() -> None:
    card = REGISTRY.evaluator("geneval-shapes")
    assert evaluator.prefix_of(card) == "shapes-"
    networks = REGISTRY.reward("shapes-detector").networks
    assert networks == ["shapes-detector"]
    for name, fact in card.metrics.items():
        assert name.startswith("shapes-") and fact.title.startswith("Shapes") and fact.networks == networks


# --- the reward -----------------------------------------------------------------------------------


def reward(images: np.ndarray, texts: list[str], spec: str) -> torch.Tensor:
    built = build(spec, REGISTRY, CPU, image_size=20)
    floats = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    request = ScoreRequest(images=floats, group=torch.arange(len(images)), texts=tuple(texts))
    return built.score(request).values


def test_the_reward_is_full_exactly_where_the_verdict_is_right() -> None:
    assert COUNTING_MATCH == COUNTING_THRESHOLD
    numbers = np.random.default_rng(0)
    images = pixels(SOME)
    hidden = numbers.random(images.shape[:3]) < 0.04
    images = np.where(hidden[..., None], 255 - images, images)  # spoils some, not all
    texts = [scene.request.text for scene in SOME]
    shifted = [
        shapes_scenes.requests(s.request.tag)[n % len(shapes_scenes.requests(s.request.tag))].text
        for n, s in enumerate(SOME)
    ]
    for wanted in (texts, shifted):
        right = judge(images, wanted)
        assert 0.05 < right.mean() < 0.95
        share = reward(images, wanted, "shapes-detector").numpy()
        assert ((share == 1) == right).all() and (share >= 0).all() and share[~right].max() < 1
        assert (reward(images, wanted, "shapes-detector(form=verdict)").numpy() == right).all()


SHARES = [
    ("a red square", [("square", "blue", 0, 0)], 1 / 2),
    ("three rings", [("ring", "red", 0, 0), ("ring", "red", 2, 0)], (2 / 3 + 1) / 2),
    ("two rings", [("ring", "red", 0, 0), ("ring", "red", 2, 0), ("ring", "red", 2, 2)], 1 / 2),
    ("a ring left of a cross", [("ring", "red", 0, 2), ("cross", "red", 0, 0)], 2 / 3),
    ("a red ring and a blue cross", [("ring", "red", 0, 2), ("cross", "red", 0, 0)], 3 / 4),
    ("a red ring and a blue cross", [("cross", "blue", 0, 0)], 1 / 2),
]


def test_parts_of_a_caption_have_their_share_and_other_captions_none() -> None:
    for text, things, expected in SHARES:
        image = shapes_scenes.draw([Thing(*thing) for thing in things])
        assert reward(image[None], [text], "shapes-detector").item() == pytest.approx(expected), text
    message = refused(reward, pixels(SOME[:1]), ["a photo of a bench"], "shapes-detector")
    assert "does not understand 'a photo of a bench'" in message


# --- the prompt files -----------------------------------------------------------------------------


def test_shipped_prompts_are_those_of_the_seed() -> None:
    for split, name in PROMPT_FILES.items():
        path = package_file(f"weights/shapes-tiny/{name}")
        assert path.read_text(encoding="utf-8") == prompt_file(split)
        read = read_prompts(path)
        assert Counter(prompt.tag for prompt in read) == dict.fromkeys(TASKS, 100)
        for tag in TASKS:
            repeats = Counter(prompt.text for prompt in read if prompt.tag == tag)
            assert len(repeats) == min(100, len(shapes_scenes.requests(tag)))
            assert max(repeats.values()) - min(repeats.values()) <= 1
        for prompt in read:
            assert dict(prompt.metadata) == json.loads(
                json.dumps(shapes_scenes.by_text()[prompt.text].metadata())
            )


def test_protocols_differ_in_prompts_and_seeds_alone() -> None:
    test, validation = (REGISTRY.protocol(name) for name in ("shapes", "shapes-validation"))
    assert not set(test.seeds) & set(validation.seeds)
    own = {"title", "summary", "seeds", "prompts"}
    left, right = (card.model_dump(exclude=own) for card in (test, validation))
    assert left == right
    assert prompt_file("test") != prompt_file("validation")
