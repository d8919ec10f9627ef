"""VQAScore and GenEval 2 on small random networks of Qwen's classes, against transformers' own generation."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from alignbench.api import PROMPT, ImageBatch, Prompt
from alignbench.data.prompts import read_prompts
from alignbench.errors import UserError
from alignbench.evaluators.geneval2 import SKILLS, Atom, GenEval2, atoms_of, soft_tifa
from alignbench.evaluators.vqa_score import VqaScore
from alignbench.registry.lookup import Registry
from alignbench.registry.protocol import protocol_digest
from alignbench.registry.reward_spec import resolve
from alignbench.samples.geneval_layout import write_layout
from tests.evaluators.test_text_image import built, pictures
from tests.helpers.command import alignbench
from tests.helpers.tiny_open_clip import seeded, spread
from tests.helpers.tiny_rewards import save_vlm
from tests.helpers.toys import Memory

REGISTRY = Registry.default()
VQA, ASSET = "vqascore-qwen3-vl-8b", "qwen3-vl-8b-instruct"
LINES: list[dict[str, Any]] = [
    {"prompt": "two wooden ducks and a lamp", "atom_count": 4,
     "vqa_list": [["How many ducks are in the image?", "two"], ["Are the ducks wooden?", "Yes"],
                  ["Are there any ducks in the image?", "Yes"], ["How many lamps are in the image?", "one"],
                  ["Are there any lamps in the image?", "Yes"]],
     "skills": ["count", "attribute", "object", "count", "object"]},
    {"prompt": "a fox under a table", "atom_count": 3,
     "vqa_list": [["Are there any foxes in the image?", "Yes"], ["Is the fox under the table?", "Yes"]],
     "skills": ["object", "position"]},
]  # fmt: skip
"""Made up, in the form of geneval2_data.jsonl."""


def save_qwen3_vl(folder: Path) -> Path:
    """A Qwen3-VL with the tokenizer and picture sizes of `save_vlm`; only files that the asset lists."""
    import transformers

    save_vlm(folder / "qwen2.5")
    before: Any = transformers.AutoProcessor.from_pretrained(folder / "qwen2.5")
    token: Any = before.tokenizer.convert_tokens_to_ids
    marks = ("image_pad", "video_pad", "vision_start", "vision_end")
    ids: dict[str, Any] = {f"{mark.removesuffix('_pad')}_token_id": token(f"<|{mark}|>") for mark in marks}
    text = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "vocab_size": len(before.tokenizer),
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2], "mrope_interleaved": True,
        },
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "depth": 2, "num_heads": 2, "patch_size": 4,
        "out_hidden_size": 32, "deepstack_visual_indexes": [0], "num_position_embeddings": 64,
    }  # fmt: skip
    config = transformers.Qwen3VLConfig(text_config=text, vision_config=vision, **ids)
    with seeded():
        model = transformers.Qwen3VLForConditionalGeneration(config)
        spread(model)
    model.save_pretrained(folder / "all")
    transformers.Qwen3VLProcessor(
        image_processor=before.image_processor,
        tokenizer=before.tokenizer,
        video_processor=before.video_processor,
        chat_template=before.chat_template,
    ).save_pretrained(folder / "all")
    listed = folder / "listed"
    listed.mkdir()
    for names in REGISTRY.asset(ASSET).files:
        shutil.copy(
            next(folder / "all" / x for x in names.split("|") if (folder / "all" / x).exists()), listed
        )
    return listed


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_qwen3_vl(tmp_path_factory.mktemp("qwen"))


def batch_of(entries: Sequence[dict[str, Any]]) -> ImageBatch:
    prompts = [Prompt(entry["prompt"], metadata=entry) for entry in entries]
    return ImageBatch(ids=range(len(entries)), images=pictures(count=len(entries)), prompts=prompts)


def generated(folder: Path, image: Tensor, question: str, answers: Sequence[str]) -> float:
    """Probability of the answers' first tokens, by transformers' generation in float32."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor: Any = AutoProcessor.from_pretrained(folder)
    model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    produced = model.generate(
        **inputs, max_new_tokens=1, do_sample=False, output_scores=True, return_dict_in_generate=True
    )
    probabilities = produced.scores[0][0].double().softmax(dim=-1)
    return float(sum(probabilities[token] for token in {processor.tokenizer.encode(x)[0] for x in answers}))


# --- VQAScore -------------------------------------------------------------------------------------


def test_vqascore_is_the_probability_of_yes(qwen: Path) -> None:
    evaluator = built(VQA, qwen, precision="fp32")
    assert isinstance(evaluator, VqaScore)
    rows = evaluator.measure(batch_of(LINES))
    expected = [
        generated(qwen, image, f'Does this figure show "{x["prompt"]}"? Please answer Yes or No.', ["Yes"])
        for image, x in zip(pictures(count=2), LINES, strict=True)
    ]
    assert rows["score"].tolist() == pytest.approx(expected, rel=1e-4)
    assert set(rows) == {"score"} and expected[0] != pytest.approx(expected[1], rel=1e-3)
    stored = Memory({**rows, PROMPT: np.arange(2)})
    (mean,) = evaluator.score(stored, None)
    assert [mean.name] == list(REGISTRY.evaluator(VQA).metrics)
    assert mean.value == pytest.approx(np.mean(expected), rel=1e-4)
    assert mean.interval == pytest.approx(sorted(expected), rel=1e-4)


# --- GenEval 2 ------------------------------------------------------------------------------------


def test_means_of_one_image() -> None:
    found = soft_tifa(torch.tensor([0.9, 0.8, 0.5], dtype=torch.float64).log())
    assert found == pytest.approx((0.7333333333, 0.7113786609), abs=1e-10)
    assert soft_tifa(torch.tensor([0.0, 1.0]).log()) == (0.5, 0.0)


def test_spellings_of_answers() -> None:
    assert set(Atom("Is it?", "Yes", "object").spellings) == {"yes", "Yes", " yes", " Yes"}
    numbers = {"three", "Three", " three", " Three", "3", " 3"}
    assert set(Atom("How many?", "three", "count").spellings) == numbers


def test_scores_are_those_of_the_generated_token(qwen: Path) -> None:
    evaluator = built("geneval2", qwen, precision="fp32")
    assert isinstance(evaluator, GenEval2)
    rows = evaluator.measure(batch_of(LINES))
    scores = []
    for image, entry in zip(pictures(count=2), LINES, strict=True):
        answers = {"Yes": ["Yes", "yes", " yes", " Yes"]}
        for digit, word in (("1", "one"), ("2", "two")):
            forms = (word, word.title(), digit)
            answers[word] = [*forms, *(f" {form}" for form in forms)]
        scores.append(
            [generated(qwen, image, f"{q} Answer in one word.", answers[a]) for q, a in entry["vqa_list"]]
        )
    am = [100 * np.mean(x) for x in scores]
    gm = [100 * np.prod(x) ** (1 / len(x)) for x in scores]
    assert rows["am"].tolist() == pytest.approx(am, rel=1e-4)
    assert rows["gm"].tolist() == pytest.approx(gm, rel=1e-4)
    assert rows["answers"][1].splitlines()[1] == f"{100 * scores[1][1]:.1f} Is the fox under the table? Yes"
    values = {x.name: x for x in evaluator.score(Memory({**rows, PROMPT: np.arange(2)}), None)}
    assert list(values) == list(REGISTRY.evaluator("geneval2").metrics)
    assert values["geneval2-gm"].value == pytest.approx(np.mean(gm), rel=1e-4)
    objects = [scores[0][2], scores[0][4], scores[1][0]]
    assert values["geneval2-object"].value == pytest.approx(100 * np.mean(objects), rel=1e-4)
    assert values["geneval2-count"].value == pytest.approx(50 * (scores[0][0] + scores[0][3]), rel=1e-4)
    assert (values["geneval2-object"].n, values["geneval2-count"].n) == (2, 1)
    assert np.isnan(values["geneval2-verb"].value) and values["geneval2-count"].interval is None
    assert rows["atoms"].tolist() == [[2, 1, 2, 0, 0], [1, 0, 0, 1, 0]] and SKILLS[3] == "position"


WRONG: list[dict[str, Any]] = [
    {"vqa_list": None},
    {"vqa_list": [["Are there any foxes in the image?", "Yes"]]},
    {"vqa_list": [["one"], ["two"]]},
    {"vqa_list": [["How many foxes are in the image?", "eleven"], ["Is it?", "Yes"]]},
    {"vqa_list": [["Is it?", "No"], ["Is it?", "Yes"]]},
    {"skills": ["object", "colour"]},
    {"vqa_list": [], "skills": []},
]


def test_the_file_is_read_and_other_entries_are_refused(tmp_path: Path) -> None:
    (tmp_path / "geneval2_data.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in LINES))
    first, second = read_prompts(tmp_path / "geneval2_data.jsonl")
    assert [atom.skill for atom in atoms_of(first)] == LINES[0]["skills"]
    assert atoms_of(second)[1] == Atom("Is the fox under the table?", "Yes", "position")
    for wrong in WRONG:
        entry = {**LINES[1], **wrong}
        with pytest.raises(UserError, match=r"'a fox under a table': its .* is not of GenEval 2's form"):
            atoms_of(Prompt(entry["prompt"], metadata=entry))


def test_a_folder_is_scored_from_the_command_line(qwen: Path, tmp_path: Path) -> None:
    """Protocol geneval2 at the size of the images, in its own precision."""
    (tmp_path / "geneval2_data.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in LINES))
    prompts = read_prompts(tmp_path / "geneval2_data.jsonl")
    images = ImageBatch(ids=range(2), images=pictures((40, 40), 2), prompts=prompts)
    write_layout(tmp_path / "images", [images])
    card = REGISTRY.locations["protocols"]["geneval2"].path.read_text(encoding="utf-8")
    (tmp_path / "cards" / "protocols").mkdir(parents=True)
    (tmp_path / "cards" / "protocols" / "geneval2-small.toml").write_text(
        card.replace("image_size = 256", "image_size = 40").replace("samples = 800", "samples = 2")
    )
    done = alignbench(
        *("evaluate", "--samples", tmp_path / "images", "--protocol", "geneval2-small"),
        *("--plugin", tmp_path / "cards", "--out", tmp_path / "run", "--log-samples"),
        *("--set", f"assets.{ASSET}={qwen}"),
        *("--set", f"assets.geneval2-prompts={tmp_path / 'geneval2_data.jsonl'}"),
    )
    assert done.returncode == 0, done.stderr
    (result,) = json.loads((tmp_path / "run" / "run.json").read_text())["results"]
    assert set(result["metrics"]) == set(REGISTRY.evaluator("geneval2").metrics)
    assert result["metrics"]["geneval2-verb"] == [None], "nobody asked"
    assert 0 < result["metrics"]["geneval2-gm"][0] <= result["metrics"]["geneval2-am"][0] < 100
    (log,) = (tmp_path / "run" / "sample-log").glob("*.jsonl")
    assert "Is the fox under the table? Yes" in log.read_text()


# --- what the numbers are of ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("protocol", "evaluator"),
    [("geneval2", "geneval2"), ("geneval2-384", "geneval2"), ("drawbench-vqascore", VQA)],
)
def test_model_revision_and_question_are_part_of_the_protocol(protocol: str, evaluator: str) -> None:
    card, asset = REGISTRY.protocol(protocol), REGISTRY.asset(ASSET)
    assert card.options[evaluator]["judge"] == f"{asset.repo}@{asset.revision}"
    for key in ("judge", "question", "precision"):
        options = {evaluator: {**card.options[evaluator], key: "another"}}
        assert protocol_digest(card.model_copy(update={"options": options})) != protocol_digest(card)
    (network,) = resolve(f"vlm-judge(model={asset.repo})", REGISTRY).networks
    assert all(fact.networks == [network] for fact in REGISTRY.evaluator(evaluator).metrics.values())


def test_identities_tell_questions_and_networks_apart(qwen: Path, tmp_path: Path) -> None:
    for name in (VQA, "geneval2"):
        first = built(name, qwen, precision="fp32").identity
        assert built(name, qwen, precision="fp32").identity == first
        other = shutil.copytree(qwen, tmp_path / name)
        with (other / "tokenizer_config.json").open("a") as file:
            file.write("\n")
        different = [built(name, other, precision="fp32").identity, built(name, qwen).identity]
        different.append(built(name, qwen, precision="fp32", question="Is it {}?").identity)
        different.append(built(name, qwen, precision="fp32", judge="another").identity)
        assert len({first, *different}) == 5


def test_no_model_is_scored_by_non_commercial_prompts_unasked() -> None:
    used = {REGISTRY.model(name).protocol for name in REGISTRY.names("models")}
    assert not [name for name in used if REGISTRY.protocol(name).prompts == "geneval2-prompts"]
