"""Score a finished run under another protocol; its record gains the results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from alignbench import run_folder
from alignbench.config.plan import Job, Plan, default_workers, make_plan, starting_weights
from alignbench.config.settings import Origin, RunConfig, known_options, values_of
from alignbench.errors import UserError
from alignbench.files import file_sha256, read_json
from alignbench.progress import Progress
from alignbench.record import Result, RunRecord, read
from alignbench.registry.lookup import Registry
from alignbench.run_folder import protocol_folder
from alignbench.runs.evaluate_models import evaluate_models
from alignbench.runs.recorder import RunRecorder
from alignbench.runs.session import devices, session


def evaluate_run(
    run: Path,
    registry: Registry,
    *,
    protocol: str,
    assignments: list[str],
    workers: int | None,
    log_samples: int = 0,
    progress: Progress,
) -> RunRecord:
    """Evaluate a finished run's models under a protocol and add the results to its record.

    Args:
        protocol: empty: the run's own, to write a log of its samples.
        assignments: `key=value` of `protocol.*`, `assets.*` and `data.*`.
        log_samples: as of `Job`; what is scored already is not scored again for it.

    Raises:
        UserError: the run is not finished, its files changed, or the protocol cannot be run.
    """
    record = read(run)
    if record.status != "complete" or record.kind == "samples":
        raise UserError(
            f"{run} is {'of given images' if record.kind == 'samples' else record.status}",
            fix="name the folder of a finished run",
        )
    own = [] if protocol else _own_protocol(record)
    plan = make_plan(registry, config_of(run, registry, protocol, [*own, *assignments]))
    plan = replace(plan, id=record.id)
    named = plan.config.protocol
    if plan.problems:
        listed = "; ".join(map(str, plan.problems))
        raise UserError(f"{run} cannot be scored under {named}: {listed}")
    workers = default_workers(plan.protocol.image_size) if workers is None else workers
    job = Job(plan, registry, run, command=record.command, workers=workers, log_samples=log_samples)
    known = [result for result in record.results if result.protocol.digest == plan.protocol_digest]
    folder = protocol_folder(run, named, plan.protocol_digest)
    if known:
        if log_samples:
            _require(known, plan)
            with session(run, registry, progress):
                log_finished(job, record, folder if folder.is_dir() else run, progress)
        else:
            progress.say(f"{run} holds results of {named} @ {plan.protocol_digest[7:15]}; nothing to do")
        return record
    with session(run, registry, progress) as current:
        record = current.record or record  # under the lock: nobody adds to it any more
        weights, exports = unchanged_weights(plan, record, run)
        recorder = RunRecorder(job, record.started, weights, exports=exports)
        with devices("fp32", plan.model.policy.parameters, folder=run) as parallel:
            found = [r for results in evaluate_models(recorder, parallel, progress, folder) for r in results]
        return current.finish(record.model_copy(update={"results": [*record.results, *found]}))


def log_finished(job: Job, record: RunRecord, folder: Path, progress: Progress) -> None:
    """Write the log of samples of a complete run, from `folder`, where its protocol was evaluated.

    Raises:
        UserError: its weights changed since.
        RunFailed: what is there does not give the record's numbers.
    """
    weights, exports = unchanged_weights(job.plan, record, job.out)
    recorder = RunRecorder(job, record.started, weights, exports=exports, results=record.results)
    with devices("fp32", job.plan.model.policy.parameters, folder=job.out) as parallel:
        for _ in evaluate_models(recorder, parallel, progress, folder):
            pass


def _own_protocol(record: RunRecord) -> list[str]:
    """Return what the run's own plan changed of its protocol, as `key=value`."""
    values = record.config["values"]
    assert isinstance(values, dict)
    return [f"{key}={value}" for key, value in values.items() if key.startswith("protocol.") and value]


def _require(known: Sequence[Result], plan: Plan) -> None:
    """Raise UserError unless the record holds every setting and seed of the plan."""
    there = {(result.setting.name, seed) for result in known for seed in result.seeds}
    for setting in plan.protocol.settings:
        for seed in plan.protocol.seeds:
            if (setting, seed) not in there:
                raise UserError(
                    f"the record holds no results of {setting}, sampling seed {seed}",
                    fix="leave --protocol and --set away, or name what was scored",
                )


def config_of(
    run: Path, registry: Registry, protocol: str = "", assignments: Sequence[str] = ()
) -> RunConfig:
    """Return a run's own configuration with another protocol, or all of its own one.

    Raises:
        UserError: the plan in the folder cannot be read, or a value does not fit.
    """
    path = run / run_folder.PLAN
    try:
        held: dict[str, Any] = read_json(path)["config"]
        values = {key: Origin(value, "run") for key, value in held["values"].items()}
        names = {key: held[key] for key in ("method", "model", "dataset", "recipe", "seed", "protocol")}
        names["protocol"] = protocol or names["protocol"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not readable", fix="name the folder of a finished run") from error
    sections = ["protocol", "assets", "data"]
    options = known_options(registry, dataset=names["dataset"], sections=sections)
    values |= {key: Origin(o.default, "default") for key, o in options.items() if key.startswith("protocol.")}
    assigned = values_of(assignments, options, why="the run is finished")
    values |= {key: Origin(value, "--set") for key, value in assigned.items()}
    return RunConfig(values=dict(sorted(values.items())), **names)


def unchanged_weights(plan: Plan, record: RunRecord, run: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Return the digests of the weights that a run started from and of those it exported, {role: digest}.

    Raises:
        UserError: they are not what its record says.
    """
    weights = starting_weights(plan)
    if weights != record.model.weights:
        raise UserError(f"the weights {run} started from changed since", fix="put them back as they were")
    exports = {path.stem: f"sha256:{file_sha256(path)}" for path in (run / "export").glob("*.safetensors")}
    if exports != record.exports:
        raise UserError(f"{run / 'export'} is not what its record says", fix="put it back as it was")
    return weights, exports
