"""The run record, `run.json`: everything a reader needs to trust, repeat and rank one run.

The form is versioned: `schema` counts up whenever a field changes its meaning, and older records stay
readable through `MIGRATIONS`. `docs/run-record.md` explains every field. Digests are `sha256:` plus hex.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, ValidationError, model_validator

from alignbench.errors import RunFailed, UserError
from alignbench.files import digest_of, parse_json, write_atomic
from alignbench.registry.protocol import Setting
from alignbench.registry.schema import CodeFile, Digest, JsonTable, Name, Title, reasons
from alignbench.text import cut, one_line

SCHEMA = 1
FILE_NAME = "run.json"

MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""{old version: function from a record of that version to one of the next version}."""

LATER = {"plugins", "intervals", "resampled", "assets", "reward_failures", "sha256", "trends"}
"""Fields that are not written where they are empty: records older than they are keep their bytes."""

Time = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]
"""ISO 8601, UTC, whole seconds."""
LARGEST = 1e100
"""No measurement is larger, and sums of squares of such numbers still are numbers."""
MOST_BYTES = 1 << 26
"""Of a file that may be a record; it is read into memory whole."""
Count = Annotated[int, Field(ge=0, lt=2**63)]
Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Amount = Annotated[float, Field(ge=0, le=LARGEST)]


class MethodInfo(JsonTable):
    """What post-trained the model."""

    name: Name
    title: Title
    options: dict[str, JsonValue]
    """Every option with its value, defaults included."""


class ModelInfo(JsonTable):
    """The model the run started from, or the name of the images that were given."""

    name: Name
    title: Title
    """As tables show it; for images given by the user what they called them."""
    parameters: Count
    """Of the policy; 0 where images were given."""
    trainable_parameters: Count
    """What the method updates; 0 for a base run."""
    weights: dict[str, Digest]
    """{role: digest} of the files the run started from; empty for random weights."""
    random_weights: bool = False


class RecipeInfo(JsonTable):
    """Where the hyperparameters come from."""

    name: Name
    source: str


class Change(JsonTable):
    """A value somebody gave explicitly."""

    value: JsonValue
    origin: str
    """`--set`, `--config FILE`, `--steps` …"""


class DataInfo(JsonTable):
    """Training data."""

    name: Name
    split: str
    digest: Digest | None
    """Of the list of samples; None if it was not computed."""
    count: Count
    """Usable images."""
    skipped: Count = 0
    """Unreadable files, left out."""


class Trend(JsonTable):
    """How one series of the training log went; a beginning and an end are a tenth of the steps each."""

    first: Number
    """Mean of the beginning."""
    last: Number
    """Mean of the end."""
    mean: Number
    highest: Number
    error: Amount
    """Standard error of last − first, from the spread of the single steps."""


class TrainInfo(JsonTable):
    """What training did and what it cost."""

    seed: int
    steps: Count
    """Collected batches."""
    images_per_step: Count
    """Over all processes."""
    micro_batch: Count
    world_size: Annotated[int, Field(ge=1)]
    device: str
    """As tables show it, e.g. `CPU` or `NVIDIA H200`."""
    precision: str
    optimizer: dict[str, JsonValue]
    """Name, learning rate, schedule, clipping …"""
    seconds: Amount
    """Wall time of training, without loading; summed over resumed parts."""
    optimizer_steps: Count
    images: Count
    """Images read."""
    sequences: Count
    """Token sequences drawn."""
    tokens: Count
    """Tokens drawn one after another."""
    reward_calls: dict[str, Count]
    """{reward: images scored}."""
    reward_failures: dict[str, Count] = {}
    """{reward: images among them without a valid score}; left out where none failed."""
    peak_memory_gib: Amount | None
    """Of the device (CUDA) or the process (CPU), largest over the processes; None if unknown."""
    resumed: Count = 0
    """How many times the run was taken up again."""
    trends: dict[str, Trend] = {}
    """{name in `metrics.jsonl`: how it went}; older records, and runs of fewer than four steps, have none."""


class ProtocolRef(JsonTable):
    """Which protocol card made the numbers comparable."""

    name: Name
    version: int
    digest: Digest
    title: Title
    rank_by: str
    """Metric that orders the table; kept here so that old records stay rankable."""


Subject = Literal["base", "method", "samples"]
"""`base`: the model as it came; `method`: after post-training; `samples`: images given, not made here."""

Bounds = Annotated[list[Number], Field(min_length=2, max_length=2)]
"""Lower and upper end."""


class Result(JsonTable):
    """The metrics of one evaluator on one subject at one setting."""

    subject: Subject
    protocol: ProtocolRef
    setting: Setting
    seeds: Annotated[list[int], Field(min_length=1)]
    """Sampling seeds."""
    n: Annotated[int, Field(ge=1)]
    """Images per sampling seed."""
    reference: Digest | None
    """Of the reference images or statistics; None where nothing is compared with."""
    evaluator: str
    """`name@version`."""
    metrics: dict[str, list[Number | None]]
    """{metric: one value per sampling seed}; null: could not be computed, tables leave it blank."""
    sample_seconds: Amount
    evaluate_seconds: Amount
    networks_used_as_reward: list[str] = []
    """Networks behind the training rewards; a metric that uses one of them is marked † in tables."""
    intervals: dict[str, list[Bounds | None]] = {}
    """{metric: per sampling seed the 95 % interval of the error of that one image set, or null}."""
    resampled: dict[str, list[list[Number] | None]] = {}
    """{metric: per sampling seed its values on resamples of the images, or null}; resample k takes the same
    images of every set of n images."""
    assets: dict[str, Digest] = {}
    """{asset: digest} of the networks, reference statistics and prompts behind the numbers."""

    @model_validator(mode="after")
    def _one_value_per_seed(self) -> Result:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds repeat: {self.seeds}")
        for name, values in self.metrics.items():
            if len(values) != len(self.seeds):
                raise ValueError(
                    f"metrics.{cut(name, 60)} has {len(values)} values for {len(self.seeds)} seeds"
                )
        for field, rows in {"intervals": self.intervals, "resampled": self.resampled}.items():
            for name, row in rows.items():
                if len(row) != len(self.metrics.get(name, [])):
                    raise ValueError(f"{field}.{name} does not belong to the values of a metric")
        for name, intervals in self.intervals.items():
            if any(bounds is not None and bounds[0] > bounds[1] for bounds in intervals):
                raise ValueError(f"intervals.{name} has a lower end above its upper end")
        return self


class EnvironmentInfo(JsonTable):
    """Where the run happened."""

    alignbench: str
    git_commit: str | None
    git_dirty: bool | None
    torch: str
    python: str
    platform: str
    device: str
    threads: Annotated[int, Field(ge=1)]
    packages: dict[str, str] = {}


class RunRecord(JsonTable):
    """One run."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    status: Literal["complete", "partial", "failed"]
    id: Name
    """Name of the run folder; carries the digest of the resolved plan."""
    kind: Literal["method", "base", "samples"]
    command: str
    """The command line that repeats the run."""
    method: MethodInfo | None
    """None for a base run and for given images."""
    model: ModelInfo
    recipe: RecipeInfo | None
    changed: dict[str, Change]
    """{dotted key: value and origin} of everything given explicitly."""
    data: DataInfo | None
    leaderboard: bool
    """False for runs that may not be ranked: synthetic data or random weights."""
    train: TrainInfo | None
    exports: dict[str, Digest]
    """{role: digest} of the exported weights."""
    results: list[Result]
    environment: EnvironmentInfo
    started: Time
    finished: Time | None
    config: dict[str, JsonValue]
    """The whole resolved configuration."""
    plugins: list[CodeFile] = []
    """Files of `--plugin`, and modules behind cards that are not built in."""
    sha256: Digest | None = None
    """In the file: of all the rest. Compared and dropped on reading; older records have none."""

    @model_validator(mode="after")
    def _is_consistent(self) -> RunRecord:
        if (self.kind == "method") != (self.method is not None):
            raise ValueError("method must be given for kind 'method' and only then")
        if self.kind == "base" and any(result.subject == "method" for result in self.results):
            raise ValueError("a base run has no results with subject 'method'")
        if any((self.kind == "samples") != (result.subject == "samples") for result in self.results):
            raise ValueError("given images have results with subject 'samples', and only they")
        if self.kind == "samples" and (self.train is not None or self.model.weights):
            raise ValueError("given images have no train section and no weights")
        if self.status == "complete" and self.finished is None:
            raise ValueError("a complete run has a finishing time")
        if self.status == "complete" and self.kind == "method" and self.train is None:
            raise ValueError("a complete method run has a train section")
        if self.model.random_weights and self.leaderboard:
            raise ValueError("a run on random weights cannot be on a leaderboard")
        seen: set[tuple[str, str, str, str]] = set()
        for result in self.results:
            for metric in result.metrics:
                key = (result.subject, result.protocol.digest, result.setting.name, metric)
                if key in seen:
                    raise ValueError(
                        f"two results hold {metric} of {result.subject} at {result.setting.name}"
                    )
                seen.add(key)
        return self


def now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def dumps(record: RunRecord) -> str:
    """Return the canonical text of a record: what `write` writes."""
    values = record.model_dump(mode="json", by_alias=True)
    for part in (values, values["train"] or {}, *values["results"]):
        for name in LATER & part.keys():
            if not part[name]:
                del part[name]
    # What no file can hold becomes a question mark, here and in what the digest is of.
    values = json.loads(json.dumps(values, ensure_ascii=False).encode(errors="replace"))
    values["sha256"] = f"sha256:{digest_of(values)}"
    return json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write(record: RunRecord, run_dir: Path) -> Path:
    """Write `run.json` so that a reader sees the old file or the new one, never a part.

    Raises:
        RunFailed: the disk is full or the folder cannot be written.
    """
    path = Path(run_dir) / FILE_NAME
    try:
        write_atomic(path, dumps(record))
    except OSError as error:
        raise RunFailed(
            f"{path} cannot be written: {error.strerror or error}",
            fix="free some space, then run the same command again",
        ) from error
    return path


def read(path: Path) -> RunRecord:
    """Read a record of any known version, from a run folder or a record file.

    Raises:
        UserError: no record there, not JSON, an unknown form, or made by a newer alignbench.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist")
    file = path / FILE_NAME if path.is_dir() else path
    if not file.is_file():
        raise UserError(
            f"{path} holds no finished run: it has no {FILE_NAME}",
            fix="name a folder that `alignbench run` made, or let an unfinished run end",
        )
    again = "remove it, or make its run again"
    if file.stat().st_size > MOST_BYTES:
        raise UserError(f"{file} is larger than any run record, {MOST_BYTES >> 20} MiB", fix=again)
    try:
        values = parse_json(file.read_bytes())
        json.dumps(values, ensure_ascii=False, allow_nan=False).encode()  # no NaN, no half characters
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is not readable JSON: {one_line(str(error))}", fix=again) from error
    promised = values.pop("sha256", None) if isinstance(values, dict) else None
    if promised not in (None, f"sha256:{digest_of(values)}"):
        raise UserError(f"{file} changed since it was written", fix="put it back, or make its run again")
    return _parse(values, file)


Tell = Callable[[UserError], None]
"""Called with what is wrong with a record that is left out."""


def read_all(files: Iterable[Path], tell: Tell | None = None) -> list[tuple[Path, RunRecord]]:
    """Read records, each with its file; with `tell`, one that cannot be read is told and left out.

    Raises:
        UserError: a record that cannot be read, without `tell`; none that can, with it.
    """
    found: list[tuple[Path, RunRecord]] = []
    broken: list[UserError] = []
    for file in files:
        try:
            found.append((file, read(file)))
        except UserError as error:
            if tell is None:
                raise
            broken.append(error)
    for other in broken[0 if found else 1 :]:
        assert tell is not None
        tell(other)
    if broken and not found:
        raise broken[0]
    return found


def _parse(values: Any, path: Path) -> RunRecord:
    version = values.get("schema") if isinstance(values, dict) else None
    if not isinstance(version, int) or isinstance(version, bool):
        raise UserError(f"{path} is not a run record: it has no schema number")
    if version > SCHEMA:
        raise UserError(
            f"{path} has schema {version}, this alignbench reads up to {SCHEMA}: "
            "it was made by a newer alignbench",
            fix="pip install --upgrade alignbench",
        )
    while version < SCHEMA:
        if version not in MIGRATIONS:
            raise UserError(f"{path} has schema {version}, which never existed")
        values = MIGRATIONS[version](values)
        version = values["schema"]
    try:
        return RunRecord.model_validate(values)
    except ValidationError as error:
        problems = reasons(error, "record")
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"{path} is not a run record: {'; '.join(problems[:3])}{more}") from error


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of `run.json`."""
    return RunRecord.model_json_schema(by_alias=True)
