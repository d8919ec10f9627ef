"""The GenEval evaluator: from images and detections to scores; colours; saved detections."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from alignbench.api import PROMPT, ImageBatch, Prompt, ScoreRequest
from alignbench.data.shapes_scenes import draw, scene
from alignbench.evaluators.geneval import detectors, shapes
from alignbench.evaluators.geneval.evaluator import TASKS, GenEval, prefix_of
from alignbench.evaluators.geneval.reward import GenEvalReward
from alignbench.evaluators.geneval.rules import Detection
from alignbench.hub.verify import AssetFile
from alignbench.registry.lookup import Registry
from alignbench.rewards.shapes import ShapesReward
from tests.helpers.data_sets import refused
from tests.helpers.tiny_open_clip import save_folder
from tests.helpers.toys import Memory

REGISTRY = Registry.default()
CPU = torch.device("cpu")


@dataclass
class Looks:
    """Finds what the first pixel's channels say: class, number, score in percent."""

    identity: str = "looks"
    class_names: Sequence[str] = ("bench", "cow")
    batch: int = 2

    def detect(self, images: Tensor, ids: Sequence[int]) -> list[list[Detection]]:
        assert 1 <= len(images) <= self.batch and len(ids) == len(images)
        found = []
        for image in images:
            label, number, percent = image[:, 0, 0].tolist()
            found.append([Detection(label, percent / 100, (0, 0, 4, 4))] * number)
        return found


class AlwaysRed:
    identity = "red"
    names: Sequence[str] = ("red", "blue")

    def classify(self, image: np.ndarray, objects: Sequence[Detection], class_name: str) -> list[str]:
        assert image.shape == (4, 4, 3) and image.dtype == np.uint8
        return ["red"] * len(objects)


def test_as_a_reward_it_agrees_with_the_reward_of_the_scenes() -> None:
    """Two programs of one rule: GenEval's on detections, and the one of `shapes-detector`."""
    scenes = [scene(3, "reward", number) for number in range(48)]
    asked = [scenes[number - number % 2].request for number in range(48)]  # every other image is another's
    images = torch.from_numpy(np.stack([draw(item.things) for item in scenes])).permute(0, 3, 1, 2) / 255
    entries = [item.metadata() for item in asked]
    given = ScoreRequest(
        images=images,
        group=torch.arange(48),
        texts=tuple(item.text for item in asked),
        metadata={"prompt": entries},
    )
    parts = shapes.ShapesDetector(batch=7), shapes.ShapesColours()
    verdict, share = (GenEvalReward(*parts, form).score(given).values for form in ("verdict", "share"))
    expected = ShapesReward("verdict").score(given).values
    assert torch.equal(verdict, expected) and 20 < expected.sum() < 40
    clauses = [len(entry["include"]) + len(entry.get("exclude", ())) for entry in entries]
    failed = (1 - share) * torch.tensor(clauses)
    assert torch.equal(share == 1, verdict == 1) and (share >= 0).all()
    assert (failed - failed.round()).abs().max() < 1e-6, "whole clauses"


def line(tag: str, name: str = "bench", count: int = 1, **more: Any) -> Prompt:
    text = f"{tag} {name} {count} {more}"
    clause = {"class": name, "count": count, **more}
    return Prompt(text, tag, {"tag": tag, "prompt": text, "include": [clause]})


def batch(*items: tuple[Prompt, tuple[int, int, int]], start: int = 0) -> ImageBatch:
    images = torch.zeros(len(items), 3, 4, 4, dtype=torch.uint8)
    images[:, :, 0, 0] = torch.tensor([seen for _, seen in items], dtype=torch.uint8)
    ids = range(start, start + len(items))
    return ImageBatch(ids=ids, images=images, prompts=[prompt for prompt, _ in items])


def evaluator() -> GenEval:
    return GenEval(Looks(), AlwaysRed(), prefix="geneval-")


def scores(correct: Mapping[str, Sequence[Sequence[int]]]) -> dict[str, Any]:
    """Score {task: for each prompt whether its images are right}."""
    prompts = [(TASKS.index(task), images) for task, of_task in correct.items() for images in of_task]
    rows = [(right, task, name) for name, (task, images) in enumerate(prompts) for right in images]
    right, tasks, names = np.array(rows).T
    columns = {"correct": right.astype(bool), "task": tasks, PROMPT: names}
    return {metric.name: metric for metric in evaluator().score(Memory(columns), None)}


# --- measuring ------------------------------------------------------------------------------------


def test_every_image_is_judged_by_its_prompt_whatever_the_company() -> None:
    cases = (
        (line("single_object"), (0, 1, 31), ""),
        (line("single_object"), (1, 1, 99), "bench: 1 wanted, 0 found"),
        (line("counting", "cow", 2), (1, 2, 91), ""),
        (line("counting", "cow", 2), (1, 2, 90), "cow: 2 wanted, 0 found"),
        (line("colors", color="red"), (0, 1, 50), ""),
        (line("colors", color="blue"), (0, 1, 50), "bench: 1 blue wanted, found red"),
    )
    items = [(prompt, seen) for prompt, seen, _ in cases]
    rows = evaluator().measure(batch(*items))
    assert rows["reason"].tolist() == [reason for _, _, reason in cases]
    assert rows["correct"].tolist() == [not reason for _, _, reason in cases]
    assert [TASKS[number] for number in rows["task"]] == [prompt.tag for prompt, _ in items]
    assert {name: rows[name].dtype.kind for name in rows} == {"correct": "b", "reason": "U", "task": "i"}
    alone = [evaluator().measure(batch(item, start=at)) for at, item in enumerate(items)]
    for name, values in rows.items():
        assert values.tolist() == [row[name][0] for row in alone]


def test_images_without_prompts_or_with_others_are_refused() -> None:
    bare = ImageBatch(ids=[0], images=torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
    assert "these have none" in refused(evaluator().measure, bare)
    for prompt, words in (
        (Prompt("a cat"), "no GenEval prompt"),
        (line("animals"), "none of GenEval's six tasks"),
        (line("single_object", "giraffe"), "unknown class 'giraffe'"),
    ):
        assert words in refused(evaluator().measure, batch((prompt, (0, 1, 99))))


# --- scoring --------------------------------------------------------------------------------------

FULL = {
    "single_object": [[1, 1, 1, 1], [1, 1, 1, 0]],
    "two_object": [[1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]],
    "counting": [[1, 0, 0, 0], [0, 1, 0, 0]],
    "colors": [[1, 1, 1, 1], [1, 1, 1, 1]],
    "position": [[0, 0, 0, 0], [0, 0, 0, 0]],
    "color_attr": [[1, 0, 0, 1], [0, 0, 0, 0]],
}


def test_overall_is_the_plain_mean_of_the_tasks() -> None:
    found = scores(FULL)
    tasks = [7 / 8, 3 / 12, 2 / 8, 1.0, 0.0, 2 / 8]
    names = ["single-object", "two-object", "counting", "colors", "position", "color-attr"]
    assert [found[f"geneval-{name}"].value for name in names] == tasks
    assert found["geneval-overall"].value == pytest.approx(sum(tasks) / 6, abs=1e-15)
    assert found["geneval-images"].value == pytest.approx((7 + 3 + 2 + 8 + 0 + 2) / 52)
    assert [found[f"geneval-{name}"].n for name in (*names, "overall")] == [8, 12, 8, 8, 8, 8, 52]
    for metric in found.values():
        assert metric.interval is not None
        low, high = metric.interval
        assert 0 <= low <= metric.value <= high <= 1 and low < high


def test_a_missing_task_leaves_no_overall_and_one_prompt_no_interval() -> None:
    found = scores({task: prompts for task, prompts in FULL.items() if task != "two_object"})
    for name in ("two-object", "overall"):
        assert math.isnan(found[f"geneval-{name}"].value)
        assert found[f"geneval-{name}"].interval is None
    assert found["geneval-two-object"].n == 0
    assert math.isfinite(found["geneval-images"].value)
    found = scores(FULL | {"position": [[1, 0, 0, 0]]})
    assert found["geneval-position"].value == 0.25
    assert found["geneval-position"].interval is None and found["geneval-overall"].interval is None


def test_cards_describe_every_metric() -> None:
    rows = Memory({"correct": np.zeros(2, bool), "task": np.zeros(2, np.int8), PROMPT: np.arange(2)})
    for name in ("geneval", "geneval-hf", "geneval-saved"):
        card = REGISTRY.evaluator(name)
        prefix = prefix_of(card)
        assert prefix == f"{name}-"
        found = GenEval(Looks(), AlwaysRed(), prefix=prefix).score(rows, None)
        assert [metric.name for metric in found] == list(card.metrics)
        titles = [fact.title for fact in card.metrics.values()]
        plain = [title for title in titles if title.startswith("GenEval") and "(" not in title]
        assert len(plain) == (len(titles) if name == "geneval" else 0)
    card = REGISTRY.evaluator("geneval")
    fewer = {key: fact for key, fact in card.metrics.items() if key != "geneval-colors"}
    assert "geneval-colors" in refused(prefix_of, card.model_copy(update={"metrics": fewer}))


def test_identity_follows_the_parts() -> None:
    other = GenEval(Looks(identity="other"), AlwaysRed(), prefix="geneval-")
    same = GenEval(Looks(), AlwaysRed(), prefix="x-")
    assert other.identity != evaluator().identity == same.identity


# --- colours --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP in the hub's form."""
    pytest.importorskip("open_clip")
    folder = tmp_path_factory.mktemp("clip") / "quick"
    return save_folder(folder, quick_gelu=True, weights="open_clip_pytorch_model.bin")


def build_colours(tiny_clip: Path) -> Any:
    from alignbench.evaluators.geneval import colours as geneval_colours

    files = {geneval_colours.ASSET: AssetFile(geneval_colours.ASSET, tiny_clip, "2" * 64)}
    return geneval_colours.build(options={"clip": "ViT-L-14-quickgelu"}, assets=files, device=CPU)


def objects(image: np.ndarray) -> list[Detection]:
    numbers = np.random.default_rng(3)
    shapes = numbers.random((6, *image.shape[:2])) < 0.7
    fractions = (30.4, 2.5, 38.6, 9.5)
    boxes = ((0, 0, 40, 30), (5, 4, 25, 29), (10, 10, 11, 12), (0, 0, 40, 8), fractions, (1, 1, 20, 20))
    masks: list[np.ndarray | None] = [*shapes[:5], None]
    return [Detection(0, 0.9, box, mask) for box, mask in zip(boxes, masks, strict=True)]


def test_colours_equal_a_direct_computation(tiny_clip: Path) -> None:
    import open_clip

    from alignbench.evaluators.geneval.colours import COLOURS

    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    colours = build_colours(tiny_clip)
    found = {name: colours.classify(image, objects(image), name) for name in ("bench", "hot dog")}
    config = json.loads((tiny_clip / "open_clip_config.json").read_text())
    wish = config["preprocess_cfg"]
    network = open_clip.CLIP(**config["model_cfg"]).eval()
    network.load_state_dict(torch.load(tiny_clip / "open_clip_pytorch_model.bin", weights_only=True))
    transform = open_clip.image_transform(28, is_train=False, **wish)
    for name, seen in found.items():
        weights = []
        for colour in COLOURS:
            looks = (f"{colour} {name}", f"{colour}-colored {name}", f"{colour} object")
            texts = [f"a photo of a {look}" for look in looks]
            with torch.no_grad():
                encoded = network.encode_text(open_clip.tokenize(texts))
            mean = (encoded / encoded.norm(dim=1, keepdim=True)).mean(dim=0)
            weights.append(mean / mean.norm())
        expected = []
        for item in objects(image):
            picture = Image.fromarray(image)
            if item.mask is not None:
                grey = Image.new("RGB", picture.size, "#999")
                picture = Image.composite(picture, grey, Image.fromarray(item.mask))
            with torch.no_grad():
                features = network.encode_image(transform(picture.crop(item.box))[None])[0]
            expected.append(COLOURS[int((torch.stack(weights) @ features).argmax())])
        assert seen == expected
    assert len(set(found["bench"] + found["hot dog"])) > 1  # the random network does tell pictures apart


def test_what_the_mask_leaves_out_is_grey() -> None:
    from alignbench.evaluators.geneval.colours import cut_out

    image = np.zeros((4, 6, 3), dtype=np.uint8)
    mask = np.zeros((4, 6), dtype=bool)
    mask[1, 2] = True
    crop = cut_out(image, Detection(0, 1.0, (1, 1, 4, 3), mask))
    assert crop.shape == (1, 3, 2, 3)
    assert crop[0, 0].tolist() == [[153, 0, 153], [153, 153, 153]]
    assert cut_out(image, Detection(0, 1.0, (1, 1, 4, 3))).max() == 0


# --- saved detections -----------------------------------------------------------------------------


def saved(**changes: Any) -> dict[str, Any]:
    item = {"class": "bench", "score": 0.95, "box": [0, 0, 4, 4]}
    return {"id": 0, "size": [4, 4], "objects": [item], **changes}


def write(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in lines))
    return path


def test_saved_detections_are_judged(tmp_path: Path) -> None:
    two = [{"class": "cow", "score": 0.95, "box": [0, 0, 4, 4]}] * 2
    path = write(tmp_path / "d.jsonl", saved(id=1, objects=two), saved())
    files = {detectors.ASSET: AssetFile(detectors.ASSET, path, "3" * 64)}
    detector = detectors.build(options={}, assets=files, device=CPU)
    assert detector.class_names == detectors.CLASS_NAMES
    judged = GenEval(detector, AlwaysRed(), prefix="geneval-saved-").measure(
        batch((line("single_object"), (0, 0, 0)), (line("counting", "cow", 3), (0, 0, 0)))
    )
    assert judged["correct"].tolist() == [True, False]


def test_masks_run_down_the_columns_as_cocos() -> None:
    mask = detectors.decode_mask({"size": [2, 3], "counts": [1, 2, 3]}, (2, 3))
    assert mask.tolist() == [[False, True, False], [True, False, False]]
    mask = np.random.default_rng(0).random((5, 7)) < 0.5
    flat = mask.T.flatten()
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *changes, len(flat)]).tolist()
    counts = [0, *counts] if flat[0] else counts
    assert (detectors.decode_mask({"size": [5, 7], "counts": counts}, (5, 7)) == mask).all()


def test_pixels_of_another_image_are_noticed(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    digest = hashlib.sha256(images[0].permute(1, 2, 0).contiguous().numpy().tobytes()).hexdigest()
    found = detectors.read_detections(write(tmp_path / "d.jsonl", saved(pixels=digest)))
    detector = detectors.SavedDetector(found, title="d.jsonl", identity="x")
    assert len(detector.detect(images[:1], [0])[0]) == 1
    for pixels, ids, reason in (
        (images[1:], [0], "id 0 was detected in another image"),
        (images[:1], [5], "no line with id 5"),
        (images[:1, :, :3], [0], "id 0 is 4×4, the image 4×3"),
    ):
        assert reason in refused(detector.detect, pixels, ids)


PLAIN: dict[str, Any] = {"class": "bench", "score": 1, "box": [0, 0, 1, 1]}


def run_length(*size: int, counts: object) -> dict[str, Any]:
    return {**PLAIN, "mask": {"size": list(size), "counts": counts}}


BAD_LINES = [
    (saved(id=7), "id 7 stands there twice"),
    (saved(size=[4]), "not enough values"),
    (saved(id=-1), "-1 is not a whole number"),
    ({"id": 0, "size": [4, 4]}, "'objects' is missing"),
    (saved(objects=[{**PLAIN, "class": "benches"}]), "Did you mean bench"),
    (saved(objects=[{**PLAIN, "score": 1.5}]), "score 1.5"),
    (saved(objects=[{**PLAIN, "box": [2, 0, 1, 1]}]), "left, top, right, bottom"),
    (saved(objects=[{**PLAIN, "label": 1}]), "unknown key 'label'"),
    (saved(objects=[run_length(4, 4, counts="Xab")]), "compressed counts are not read"),
    (saved(objects=[run_length(4, 4, counts=[3])]), "do not add up to 16"),
    (saved(objects=[run_length(2, 8, counts=[16])]), "is not the image's height and width"),
]


def test_bad_lines_are_named(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text("\n")
    assert detectors.read_detections(tmp_path / "d.jsonl") == {}
    assert "absent.jsonl: " in refused(detectors.read_detections, tmp_path / "absent.jsonl")
    for bad, words in BAD_LINES:
        message = refused(detectors.read_detections, write(tmp_path / "d.jsonl", saved(id=7), bad))
        assert "line 2" in message and words in message
