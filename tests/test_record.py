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

from alignbench import record
from alignbench.errors import EXIT_FAILED, RunFailed, UserError
from alignbench.record import RunRecord

DATA = Path(__file__).parent / "golden" / "records"
DOC = Path(__file__).parent.parent / "docs" / "run-record.md"
METHOD = DATA / "vapi-llamagen-tiny-s0-11111111.json"


def values() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(METHOD.read_text(encoding="utf-8"))
    return loaded


# --- reading and writing --------------------------------------------------------------------------


def test_schema_1_stays_readable_and_canonical() -> None:
    committed = sorted((DOC.parent.parent / "leaderboards" / "records").glob("*.json"))
    assert len(committed) >= 18
    for path in committed:
        assert record.dumps(record.read(path)) == path.read_text(encoding="utf-8"), path.name
    for path in sorted(DATA.glob("*.json")):  # older than the digest
        text = re.sub(r',\n  "sha256": "[^"]+"\n', "\n", record.dumps(record.read(path)))
        assert text == path.read_text(encoding="utf-8"), path.name


def test_a_title_that_no_file_can_hold_is_readable_again(tmp_path: Path) -> None:
    odd = record.read(METHOD)
    odd = odd.model_copy(update={"model": odd.model.model_copy(update={"title": "mine \udcff"})})
    assert record.read(record.write(odd, tmp_path)).model.title == "mine ?"


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


def test_write_then_read_and_a_failed_write_leaves_the_old_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = record.read(METHOD)
    path = record.write(first, tmp_path)
    assert path == tmp_path / "run.json" and record.read(path) == first

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunFailed, match="No space left on device") as caught:
        record.write(first.model_copy(update={"status": "failed"}), tmp_path)
    assert caught.value.exit_code == EXIT_FAILED
    assert record.read(tmp_path) == first
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.json"]


def test_times_are_in_the_form_of_records() -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", record.now())


# --- fields that came later -----------------------------------------------------------------------


def given_images(**changes: Any) -> dict[str, Any]:
    """Images that somebody made elsewhere, scored once; changes are of the result."""
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
        **changes,
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
    content = given_images()
    resampled = {"fd-digits": [[2.3, 2.5, 2.4]], "recall": [None]}
    first = RunRecord.model_validate(given_images(resampled=resampled))
    record.write(first, tmp_path)
    assert record.read(tmp_path) == first
    (result,) = json.loads(record.dumps(first))["results"]
    assert result["intervals"] == content["results"][0]["intervals"] and result["resampled"] == resampled


def test_what_came_later_is_left_out_while_empty() -> None:
    text = record.dumps(RunRecord.model_validate(given_images(intervals={}, assets={})))
    assert not {"intervals", "resampled", "assets"} & set(json.loads(text)["results"][0])


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
    ("change", "reason"),
    [
        ({"intervals": {"fd-digits": [[2.6, 2.2]]}}, "lower end above its upper end"),
        ({"intervals": {"fd-digits": [[2.2, 2.6], None]}}, "does not belong to the values"),
        ({"intervals": {"beauty": [[2.2, 2.6]]}}, "does not belong to the values"),
        ({"intervals": {"fd-digits": [[2.2]]}}, "at least 2"),
        ({"intervals": {"fd-digits": [[2.2, 2.4, 2.6]]}}, "at most 2"),
        ({"intervals": {"fd-digits": [[2.2, float("inf")]]}}, "finite"),
        ({"resampled": {"beauty": [[1.0]]}}, "does not belong to the values"),
        ({"resampled": {"fd-digits": [[1.0], [1.0]]}}, "does not belong to the values"),
        ({"metrics": {"fd-digits": [float("nan")]}}, "finite"),
        ({"metrics": {"fd-digits": [float("inf")]}}, "finite"),
    ],
)
def test_broken_numbers_are_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        RunRecord.model_validate(given_images(**change))


def test_base_runs_have_no_method_results() -> None:
    with pytest.raises(ValidationError, match="no results with subject 'method'"):
        RunRecord.model_validate({**values(), "kind": "base", "method": None})


# --- what is refused ------------------------------------------------------------------------------


def refused(folder: Path, content: Any = None) -> UserError:
    """The error for a run folder with this in its record."""
    if content is not None:
        text = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / "run.json").write_bytes(text)
    with pytest.raises(UserError) as caught:
        record.read(folder)
    return caught.value


def test_what_is_no_record(tmp_path: Path) -> None:
    assert "holds no finished run: it has no run.json" in refused(tmp_path).what
    assert "does not exist" in refused(tmp_path / "nowhere").what
    content: object
    for content in ([], {}, {"schema": "1"}, {"schema": True}, 3):
        assert "is not a run record: it has no schema number" in refused(tmp_path, content).what
    text = METHOD.read_bytes()
    for broken in (text[: len(text) // 2], b"\xff\xfe\x00"):
        assert "run.json is not readable JSON" in refused(tmp_path, broken).what
    newer = refused(tmp_path, {**values(), "schema": 2, "something": "new"})
    assert "made by a newer alignbench" in newer.what and "pip install" in newer.fix
    assert "schema 0, which never existed" in refused(tmp_path, {**values(), "schema": 0}).what


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
    (tmp_path / "run.json").write_text(json.dumps(old), encoding="utf-8")
    assert record.read(tmp_path) == record.read(METHOD)


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
    assert reason in str(refused(tmp_path, content))


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
    "Trend": "`train`",
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
    fields = [item for model in models(RunRecord).values() for item in model.model_fields.items()]
    rows = [line for line in DOC.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    named = [name for line in rows for name in re.findall(r"`([\w.*]+)`", line.split("|")[1])]
    assert len(named) > 70
    known = {field.alias or key for key, field in fields}
    assert not {name.rpartition(".")[2] for name in named} - known


def test_json_schema_names_the_version() -> None:
    schema = record.json_schema()
    assert schema["properties"]["schema"]["const"] == record.SCHEMA
    assert schema["additionalProperties"] is False
