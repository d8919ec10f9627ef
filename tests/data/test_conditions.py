"""Data sets without images: prompts and class ids, from the file to the batch and the plan."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alignbench.api import ClassLabels, Condition, ScoreRequest, Scores
from alignbench.config.plan import make_plan
from alignbench.config.settings import resolve
from alignbench.data.shapes import prompt_file
from alignbench.data.shapes_scenes import by_text
from alignbench.data.stream import Stream
from alignbench.errors import UserError
from alignbench.progress import Progress
from alignbench.randomness import permutation
from alignbench.registry.class_names import class_names
from alignbench.registry.lookup import Registry
from alignbench.rewards.shapes import ShapesReward
from alignbench.runs import run
from alignbench.testing import Case, Subject
from tests.helpers import janus_toys
from tests.helpers.data_sets import opened, refused

REGISTRY = Registry.default()
TEXTS = ["a red circle", "a blue square", "a red circle"]
COCO = [{"image_id": number, "id": 9 - number, "caption": f"{text}\n"} for number, text in enumerate(TEXTS)]
FORMS = {
    "a.txt": "\n".join(TEXTS),
    "a.jsonl": "\n".join(json.dumps({"text": text}) for text in TEXTS),
    "captions_train2014.json": json.dumps({"info": {}, "images": [], "annotations": COCO}),
    "a.json": json.dumps([{"caption": text} for text in TEXTS]),
}


def prompts(folder: Path, name: str = "a.txt", content: str | None = None, **options: Any) -> Any:
    (folder / name).write_text(FORMS[name] if content is None else content, encoding="utf-8")
    return opened("prompts", "all", file=str(folder / name), **options)


def test_every_form_gives_the_same_captions(tmp_path: Path) -> None:
    for name in FORMS:
        dataset = prompts(tmp_path, name)
        assert list(dataset.captions) == TEXTS and len(dataset) == 3, name
        assert dataset.num_classes == 0 and dataset.labels.tolist() == [0, 0, 0]
        assert "no images" in refused(dataset.load, 0)
    assert dict(dataset.prompts[1].metadata) == {"caption": "a blue square"}


def test_the_digest_is_of_the_content_alone(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    first, same = prompts(tmp_path).digest, prompts(tmp_path / "b").digest
    other = prompts(tmp_path, content="\n".join(reversed(TEXTS[:2]))).digest
    assert first == same != other
    lines = [json.dumps({"prompt": "x", "include": [{"class": name, "count": 1}]}) for name in ("cat", "dog")]
    assert len({prompts(tmp_path, "a.jsonl", line).digest for line in lines}) == 2


def test_a_limit_keeps_a_fixed_subset_in_order(tmp_path: Path) -> None:
    everything = [f"prompt {number}" for number in range(50)]
    content = "\n".join(everything)
    kept = [list(prompts(tmp_path, content=content, limit=size).captions) for size in (10, 20)]
    assert [len(part) for part in kept] == [10, 20] and set(kept[0]) < set(kept[1])
    assert kept[1] == sorted(kept[1], key=everything.index) != everything[:20]


@pytest.mark.parametrize(
    ("content", "reason"), [('{"prompt": "\\ud800"}', "half a character"), ('{"text": " "}', "is empty")]
)
def test_what_is_no_prompt_is_refused(tmp_path: Path, content: str, reason: str) -> None:
    assert reason in refused(prompts, tmp_path, "a.jsonl", f'{{"prompt": "x"}}\n{content}\n')


def test_a_stream_without_images_deals_the_same_conditions(tmp_path: Path) -> None:
    seen: list[list[str]] = []

    def condition(texts: Any) -> Condition:
        seen.append(list(texts))
        return ClassLabels(torch.zeros(len(texts), dtype=torch.int64))

    content = "\n".join(f"prompt {number}" for number in range(7))
    dataset = prompts(tmp_path, content=content)
    stream = Stream(dataset, seed=3, images_per_step=7, workers=2, text_condition=condition, images=False)
    batch = stream.batch(1, 0, 1)
    order = permutation(3, "data", 1, 7)
    assert seen[0] == [f"prompt {number}" for number in order]
    assert batch.index.tolist() == list(range(7, 14)) and batch.images.shape == (7, 3, 0, 0)
    digits = opened("digits8")
    with_images, without = (
        Stream(digits, seed=0, images_per_step=6, workers=0, images=images) for images in (True, False)
    )
    left, right = (stream.batch(5, 1, 2).condition for stream in (with_images, without))
    assert torch.equal(left.ids, right.ids)  # type: ignore[attr-defined]


def test_mismatched_conditions_are_those_of_the_next_images_of_the_step(tmp_path: Path) -> None:
    """However the step is shared; across epochs too; captions are turned into conditions together."""
    seen: list[list[str]] = []

    def condition(texts: Any) -> Condition:
        seen.append(list(texts))
        return ClassLabels(torch.tensor([int(text.split()[1]) for text in texts]))

    dataset = prompts(tmp_path, content="\n".join(f"prompt {number}" for number in range(7)))
    stream = Stream(
        dataset, seed=3, images_per_step=6, workers=0, text_condition=condition, images=False, mismatched=True
    )
    whole, halves = stream.batch(1, 0, 1), [stream.batch(1, rank, 2) for rank in (0, 1)]
    own = np.concatenate([permutation(3, "data", epoch, 7) for epoch in (0, 1)])[6:12]
    for batches in ([whole], halves, list(whole.split(4))):
        found = [x.condition.ids.tolist() for x in batches]  # type: ignore[attr-defined]
        others = [x.mismatched.ids.tolist() for x in batches]  # type: ignore[union-attr]
        assert [*chain(*found)] == own.tolist() and [*chain(*others)] == np.roll(own, -1).tolist()
    assert [len(texts) for texts in seen] == [12, 6, 6]
    plain = Stream(dataset, seed=3, images_per_step=6, workers=0, text_condition=condition, images=False)
    assert plain.batch(1, 0, 1).mismatched is None


def test_class_ids_come_each_once_with_the_names_that_are_asked_for(tmp_path: Path) -> None:
    plain = opened("classes", "all", num_classes=10)
    assert plain.labels.tolist() == list(range(10)) and plain.class_names[9] == "9"
    file = tmp_path / "LOC_synset_mapping.txt"
    file.write_text("n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\n")
    named = opened("classes", "all", num_classes=2, names=str(file))
    assert named.class_names == ("tench, Tinca tinca", "goldfish, Carassius auratus")
    assert named.digest != opened("classes", "all", num_classes=2).digest
    assert "names 2 classes, the model has 3" in refused(
        opened, "classes", "all", num_classes=3, names=str(file)
    )
    assert "neither openai nor wordnet nor a file" in refused(
        opened, "classes", "all", num_classes=3, names="open-ai"
    )
    assert "must say how many" in refused(opened, "classes", "all")


def test_wordnet_names_are_those_of_the_released_program() -> None:
    """What is known of its list: 492 with commas, 121 characters at most, `crane` twice, at 134 and 517."""
    names = class_names(REGISTRY.dataset("imagenet"), "wordnet", 1000)
    assert names[0] == "tench, Tinca tinca" and len(names) == 1000
    assert sum("," in name for name in names) == 492 and max(map(len, names)) == 121
    assert [number for number, name in enumerate(names) if name == "crane"] == [134, 517]
    assert class_names(REGISTRY.dataset("imagenet"), "openai") == class_names(REGISTRY.dataset("imagenet"))


def problems(method: str, model: str, dataset: str, *assignments: str) -> list[str]:
    config = resolve(REGISTRY, method=method, model=model, dataset=dataset, assignments=assignments)
    return [str(problem) for problem in make_plan(REGISTRY, config, evaluates=False).problems]


def test_plans_say_who_needs_images_and_read_the_file(tmp_path: Path) -> None:
    prompts(tmp_path)
    given = f"data.file={tmp_path / 'a.txt'}"
    assert problems("ar-grpo", "shapes-tiny", "prompts", given) == []
    assert problems("ar-grpo", "llamagen-tiny", "classes") == []
    for method in ("vapi", "ste", "ntp", "tokenizer-decoder", "reward-only"):
        (problem,) = problems(method, "shapes-tiny", "prompts", given)
        assert f"{method} needs images, data set prompts has none" in problem
    (problem,) = problems("ar-grpo", "shapes-tiny", "prompts")
    assert "no prompt file was given" in problem and "--set data.file=PATH" in problem
    (tmp_path / "a.txt").write_text("\n")
    (problem,) = problems("ar-grpo", "shapes-tiny", "prompts", given)
    assert "holds no prompts" in problem
    (problem,) = problems("ar-grpo", "llamagen-tiny", "classes", f"data.names={tmp_path / 'a.txt'}")
    assert "names 0 classes, the model has 10" in problem
    text = problems("ar-grpo", "llamagen-xl", "classes")
    assert any("have no names → --set data.names=openai" in problem for problem in text)
    text = problems("ar-grpo", "llamagen-xl", "classes", "data.names=wordnet")
    assert not any("names" in problem for problem in text)


@pytest.mark.parametrize(
    "model", ["llamagen-tiny", "shapes-tiny", pytest.param("janus-tiny", marks=pytest.mark.slow)]
)
def test_ar_grpo_runs_without_an_image(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = "classes" if model == "llamagen-tiny" else "prompts"
    prompts(tmp_path, content="a red circle\na blue square\na white cross\n")
    more = [] if dataset == "classes" else [f"data.file={tmp_path / 'a.txt'}"]
    if model == "janus-tiny":  # it ships no weights
        folder = janus_toys.write_hub_folder(tmp_path / "weights", janus_toys.hub_model())
        more.append(f"model.policy={folder / 'model.safetensors'}")
    monkeypatch.setattr("alignbench.testing.resolve", lambda *a, **k: resolve(*a, **k, dataset=dataset))
    case = Case(REGISTRY, "ar-grpo", model, ("train.steps=2", *more))
    record = run.run(case.job(tmp_path / "run"), Progress(quiet=True))
    assert record.status == "complete" and record.data is not None
    assert (record.data.name, record.data.count) == (dataset, 10 if dataset == "classes" else 3)


def test_whole_entries_reach_the_reward_of_their_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[ScoreRequest] = []
    score = ShapesReward.score

    def watched(self: ShapesReward, given: ScoreRequest) -> Scores:
        seen.append(given)
        return score(self, given)

    monkeypatch.setattr(ShapesReward, "score", watched)
    prompts(tmp_path, "a.jsonl", prompt_file("validation"))
    monkeypatch.setattr("alignbench.testing.resolve", lambda *a, **k: resolve(*a, **k, dataset="prompts"))
    case = Case(REGISTRY, "ar-grpo", "shapes-tiny", (f"data.file={tmp_path / 'a.jsonl'}",))
    subject = Subject.build(case, tmp_path)
    with torch.no_grad():
        for piece in subject.batch().split(3):
            subject.method.collect(piece, 0)
    entries = [entry for given in seen for entry in given.metadata["prompt"]]
    assert len(entries) == 64 and all(entries[row] == entries[row - row % 8] for row in range(64))
    assert [entry["prompt"] for entry in entries] == [text for given in seen for text in given.texts]
    assert all(dict(by_text()[entry["prompt"]].metadata()) == entry for entry in entries)


def test_whatever_these_methods_train_plans_with_nothing_but_files_to_find() -> None:
    trained = {name for name in REGISTRY.names("models") if not name.endswith("-cca")}
    pairs = {("ar-grpo", model) for model in trained}
    cards = [REGISTRY.recipe(name) for name in REGISTRY.names("recipes")]
    pairs |= {(card.method, x) for card in cards if card.method in ("cca", "gft") for x in card.models}
    assert {("cca", "llamagen-xxl"), ("cca", "janus-pro-7b"), ("gft", "llamagen-3b")} < pairs
    for method, model in pairs:
        config = resolve(REGISTRY, method=method, model=model)
        found = make_plan(REGISTRY, config, evaluates=False).problems
        paths = ("was given", "is not in", " lacks ")
        assert config.recipe and all(any(word in problem.what for word in paths) for problem in found), model
        if method == "cca":
            alone = resolve(REGISTRY, method=method, model=model, assignments=["train.images_per_step=1"])
            problems = make_plan(REGISTRY, alone, evaluates=False).problems
            assert "train.images_per_step" in {problem.where for problem in problems}


def test_a_recipe_may_name_its_data(tmp_path: Path) -> None:
    built_in = REGISTRY.locations["recipes"]["ar-grpo-llamagen-tiny"].path.read_text(encoding="utf-8")
    (tmp_path / "recipes").mkdir()
    changed = built_in.replace("\n[values]", 'default = false\ndata = "classes"\n\n[values]')
    (tmp_path / "recipes" / "mine.toml").write_text(changed, encoding="utf-8")
    cards = Registry([*REGISTRY.roots, ("test", tmp_path)])
    given: dict[str, Any] = {"method": "ar-grpo", "model": "llamagen-tiny", "recipe": "mine"}
    assert resolve(cards, **given).dataset == "classes"
    assert resolve(cards, **given, dataset="digits8").dataset == "digits8"
    assert resolve(cards, method="ar-grpo", model="llamagen-tiny").dataset == "digits8"
    with pytest.raises(UserError, match=r"data\.names"):
        resolve(cards, method="ar-grpo", model="llamagen-tiny", assignments=["data.names=x"])
