"""The run record: written whole, read strictly, documented, and readable for ever."""

from __future__ import annotations

import contextlib
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from alignbench import files, record
from alignbench.errors import EXIT_FAILED, RunFailed, UserError
from alignbench.record import RunRecord

DATA = Path(__file__).parent / "golden" / "records"
DOC = Path(__file__).parent.parent / "docs" / "run-record.md"
METHOD = DATA / "vapi-llamagen-tiny-s0-11111111.json"


def values() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(METHOD.read_text(encoding="utf-8"))
    return loaded


def write_json(folder: Path, content: Any) -> Path:
    (folder / "run.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


# --- reading and writing --------------------------------------------------------------------------


def test_schema_1_stays_readable_and_canonical() -> None:
    committed = sorted((DOC.parent.parent / "leaderboards" / "records").glob("*.json"))
    assert len(committed) >= 18
    for path in committed:
        assert record.dumps(record.read(path)) == path.read_text(encoding="utf-8"), path.name
    for path in sorted(DATA.glob("*.json")):  # older than the digest
        text = re.sub(r',\n  "sha256": "[^"]+"\n', "\n", record.dumps(record.read(path)))
        assert text == path.read_text(encoding="utf-8"), path.name


def test_any_changed_bit_of_a_record_is_found(tmp_path: Path) -> None:
    """A flipped digit would otherwise be another score in every table."""
    path = record.write(record.read(METHOD), tmp_path)
    whole, content = record.read(path), path.read_bytes()
    for bit in random.Random(0).sample(range(8 * len(content)), 200):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with contextlib.suppress(UserError):  # a changed blank between two values changes nothing
            assert record.read(path) == whole


def test_write_then_read(tmp_path: Path) -> None:
    first = record.read(METHOD)
    path = record.write(first, tmp_path)
    assert path == tmp_path / "run.json"
    assert record.read(tmp_path) == record.read(path) == first
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.json"]


def test_a_failed_write_leaves_the_old_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = record.read(METHOD)
    record.write(first, tmp_path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(RunFailed, match="No space left on device") as caught:
        record.write(first.model_copy(update={"status": "failed"}), tmp_path)
    assert caught.value.exit_code == EXIT_FAILED
    assert record.read(tmp_path) == first
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.json"]


def test_times_are_in_the_form_of_records() -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", record.now())


# --- fields that came later -----------------------------------------------------------------------


def given_images() -> dict[str, Any]:
    """Images that somebody made elsewhere, scored once."""
    content = values()
    (result, *_) = content["results"]
    unknown = dict.fromkeys(["temperature", "top_k", "top_p", "cfg_scale", "cfg_interval"])
    result |= {
        "subject": "samples",
        "setting": {"name": "given", "title": "given images", **unknown},
        "seeds": [0],
        "metrics": {"fd-digits": [2.4], "recall": [None]},
        "intervals": {"fd-digits": [[2.2, 2.6]], "recall": [None]},
        "assets": {"a-network": "sha256:" + "c" * 64},
        "reference": None,
    }
    model = {"name": "my-images", "title": "My images", "parameters": 0, "trainable_parameters": 0}
    return content | {
        "kind": "samples",
        "method": None,
        "train": None,
        "model": {**model, "weights": {}, "random_weights": False},
        "results": [result],
    }


def test_given_images_survive_the_disk(tmp_path: Path) -> None:
    first = RunRecord.model_validate(given_images())
    record.write(first, tmp_path)
    assert record.read(tmp_path) == first
    assert json.loads(record.dumps(first))["results"][0]["intervals"] == {
        "fd-digits": [[2.2, 2.6]],
        "recall": [None],
    }


def test_what_came_later_is_left_out_while_empty() -> None:
    content = given_images()
    del content["results"][0]["intervals"], content["results"][0]["assets"]
    text = record.dumps(RunRecord.model_validate(content))
    assert not {"intervals", "resampled", "assets"} & set(json.loads(text)["results"][0])


def test_resamples_belong_to_a_metric_and_survive_the_disk(tmp_path: Path) -> None:
    content = given_images()
    content["results"][0]["resampled"] = {"fd-digits": [[2.3, 2.5, 2.4]], "recall": [None]}
    first = RunRecord.model_validate(content)
    record.write(first, tmp_path)
    assert record.read(tmp_path) == first
    for wrong in ({"beauty": [[1.0]]}, {"fd-digits": [[1.0], [1.0]]}):
        content["results"][0]["resampled"] = wrong
        with pytest.raises(ValidationError, match="does not belong to the values"):
            RunRecord.model_validate(content)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kind": "base"}, "given images have results with subject 'samples'"),
        ({"train": values()["train"]}, "no train section and no weights"),
        ({"results": values()["results"]}, "given images have results with subject 'samples'"),
        ({"method": values()["method"]}, "method must be given"),
        ({"model": values()["model"]}, "no weights"),
    ],
)
def test_given_images_are_nothing_else(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        RunRecord.model_validate(given_images() | change)


@pytest.mark.parametrize(
    ("intervals", "reason"),
    [
        ({"fd-digits": [[2.6, 2.2]]}, "lower end above its upper end"),
        ({"fd-digits": [[2.2, 2.6], None]}, "does not belong to the values"),
        ({"beauty": [[2.2, 2.6]]}, "does not belong to the values"),
        ({"fd-digits": [[2.2]]}, "at least 2"),
        ({"fd-digits": [[2.2, 2.4, 2.6]]}, "at most 2"),
        ({"fd-digits": [[2.2, float("inf")]]}, "finite"),
    ],
)
def test_broken_intervals_are_refused(intervals: dict[str, Any], reason: str) -> None:
    content = given_images()
    content["results"][0]["intervals"] = intervals
    with pytest.raises(ValidationError, match=reason):
        RunRecord.model_validate(content)


# --- what is refused ------------------------------------------------------------------------------


def test_not_a_run_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a run folder: it has no run\.json"):
        record.read(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        record.read(tmp_path / "nowhere")


def test_files_of_something_else(tmp_path: Path) -> None:
    for content in ([], {}, {"schema": "1"}, {"schema": True}, 3):
        with pytest.raises(UserError, match="is not a run record: it has no schema number"):
            record.read(write_json(tmp_path, content))
    text = METHOD.read_bytes()
    for broken in (text[: len(text) // 2], b"\xff\xfe\x00"):
        (tmp_path / "run.json").write_bytes(broken)
        with pytest.raises(UserError, match=r"run\.json is not readable JSON"):
            record.read(tmp_path)


def test_records_of_another_version(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="made by a newer alignbench") as caught:
        record.read(write_json(tmp_path, {**values(), "schema": 2, "something": "new"}))
    assert "pip install" in caught.value.fix
    with pytest.raises(UserError, match="schema 0, which never existed"):
        record.read(write_json(tmp_path, {**values(), "schema": 0}))


def test_an_older_record_is_migrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = values()
    old["schema"] = -1
    old["title"] = old.pop("command")

    def to_zero(content: dict[str, Any]) -> dict[str, Any]:
        return {**content, "schema": 0}

    def to_one(content: dict[str, Any]) -> dict[str, Any]:
        rest = {key: value for key, value in content.items() if key != "title"}
        return {**rest, "command": content["title"], "schema": 1}

    monkeypatch.setattr(record, "MIGRATIONS", {-1: to_zero, 0: to_one})
    assert record.read(write_json(tmp_path, old)) == record.read(METHOD)


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        (("colour",), "red", "colour"),
        (("train", "colour"), "red", "train.colour"),
        (("train", "seed"), "0", "train.seed"),
        (("train", "world_size"), 0, "train.world_size"),
        (("status",), "done", "status"),
        (("id",), "../elsewhere", "id"),
        (("started",), "yesterday", "started"),
        (("model", "weights", "policy"), "1234", "model.weights.policy"),
        (("results", 0, "metrics", "fd-digits"), [1.0], "1 values for 3 seeds"),
        (("results", 0, "seeds"), [0, 0, 1], "seeds repeat"),
        (("finished",), None, "finishing time"),
        (("train",), None, "has a train section"),
        (("method",), None, "method must be given"),
        (("kind",), "base", "method must be given"),
        (("model", "random_weights"), True, "random weights cannot be on a leaderboard"),
        (("results", 1, "setting", "name"), "t1", "two results hold fd-digits of base at t1"),
    ],
)
def test_a_broken_record_is_named_by_key_and_reason(
    tmp_path: Path, place: tuple[str | int, ...], value: Any, reason: str
) -> None:
    content: Any = values()
    target = content
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = value
    with pytest.raises(UserError, match=re.escape(reason)):
        record.read(write_json(tmp_path, content))


def test_numbers_are_finite_and_base_runs_have_no_method_results() -> None:
    for value in (float("nan"), float("inf")):
        content = values()
        content["results"][0]["metrics"]["fd-digits"][0] = value
        with pytest.raises(ValidationError, match="finite"):
            RunRecord.model_validate(content)
    with pytest.raises(ValidationError, match="no results with subject 'method'"):
        RunRecord.model_validate({**values(), "kind": "base", "method": None})


# --- documentation --------------------------------------------------------------------------------


def models(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Every model class that a record is made of."""
    found = {model.__name__: model}
    for field in model.model_fields.values():
        for inner in classes(field.annotation):
            found |= models(inner)
    return found


def classes(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in getattr(annotation, "__args__", ()) for found in classes(part)]


SECTIONS = {
    "RunRecord": "The record",
    "MethodInfo": "`method`",
    "ModelInfo": "`model`",
    "RecipeInfo": "`recipe`, `changed` and `data`",
    "Change": "`recipe`, `changed` and `data`",
    "DataInfo": "`recipe`, `changed` and `data`",
    "TrainInfo": "`train`",
    "Result": "`results[]`",
    "ProtocolRef": "`results[]`",
    "Setting": "`results[]`",
    "EnvironmentInfo": "`environment`",
    "CodeFile": "`plugins[]`",
}


def test_every_field_is_documented_in_its_section() -> None:
    headings = re.split(r"^## (.+)$", DOC.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    bodies = dict(zip(headings[::2], headings[1::2], strict=True))
    everything = models(RunRecord)
    assert set(everything) == set(SECTIONS)
    missing = []
    for name, model in everything.items():
        words = re.findall(r"`([\w.*]+)`", bodies[SECTIONS[name]])
        documented = {word.rpartition(".")[2] for word in words}
        fields = {field.alias or key for key, field in model.model_fields.items()}
        missing += [f"{name}.{field}" for field in sorted(fields - documented)]
    assert not missing


def test_every_documented_row_is_a_field() -> None:
    known = {
        field.alias or key
        for model in models(RunRecord).values()
        for key, field in model.model_fields.items()
    }
    rows = [line for line in DOC.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    named = [name for line in rows for name in re.findall(r"`([\w.*]+)`", line.split("|")[1])]
    assert len(named) > 70
    assert not {name.rpartition(".")[2] for name in named} - known


def test_json_schema_names_the_version() -> None:
    schema = record.json_schema()
    assert schema["properties"]["schema"]["const"] == record.SCHEMA
    assert schema["additionalProperties"] is False
