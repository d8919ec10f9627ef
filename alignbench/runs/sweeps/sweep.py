"""A sweep: ordinary runs that belong in one table, planned together and carried out one after another.

Every run has its own folder, named by its plan's digest, under the sweep's folder; what is done is not done
again. A run that fails is listed with its reason and does not stop the others.
"""

from __future__ import annotations

import gc
import itertools
import shlex
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from alignbench.config.plan import Job, Plan, make_plan
from alignbench.config.settings import parse_assignments, resolve
from alignbench.distributed import world_size
from alignbench.errors import EXIT_PARTIAL, Problem, UserError, suggest
from alignbench.files import write_atomic
from alignbench.progress import Progress
from alignbench.record import FILE_NAME, RunRecord, read
from alignbench.registry.lookup import Registry
from alignbench.registry.schema import Scalar
from alignbench.registry.tables import SweepCard, SweepRow

NAMES = ("method", "recipe")
"""Grid keys that are names of cards, not settings."""


@dataclass(frozen=True)
class Configuration:
    """One line of the table: everything but the seed."""

    row: str
    """Title of its row; empty where the sweep has none."""
    point: Mapping[str, Scalar]
    """Its place in the grid."""
    method: str
    recipe: str
    """Empty: the one for method and model."""
    values: Mapping[str, Scalar]
    """Settings as `--set` takes them."""

    @property
    def title(self) -> str:
        """How tables name it."""
        return " · ".join(filter(None, [self.row, *(f"{key} = {text(v)}" for key, v in self.point.items())]))

    @property
    def name(self) -> str:
        """Its title, or its method where it has none."""
        return self.title or self.method


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep."""

    configuration: Configuration
    seed: int
    plan: Plan
    folder: Path
    command: str
    """Does this run alone, for example under torchrun or on another machine that shares the folder."""

    def finished(self) -> RunRecord | None:
        """Read its record; None unless it is complete."""
        record = read(self.folder) if (self.folder / FILE_NAME).exists() else None
        return record if record and record.status == "complete" else None

    @property
    def done(self) -> bool:
        return self.finished() is not None


@dataclass(frozen=True)
class Sweep:
    """A planned sweep."""

    name: str
    card: SweepCard
    protocol: str
    configurations: tuple[Configuration, ...]
    runs: tuple[SweepRun, ...]
    """Seed by seed, so that the table is whole early."""
    given: Mapping[str, str]
    """Settings of every run from the command line."""
    out: Path
    command: str
    """Makes it; the folder apart."""

    @property
    def problems(self) -> list[Problem]:
        """Problems of all runs, each once."""
        return list(dict.fromkeys(problem for run in self.runs for problem in run.plan.problems))


def text(value: Scalar) -> str:
    """A value as `--set` takes it, floats in their short form where that loses nothing."""
    if isinstance(value, bool):
        return str(value).lower()
    short = f"{value:g}" if isinstance(value, float) else ""
    return short if short and float(short) == value else str(value)


def configurations(card: SweepCard, given: Mapping[str, str] | None = None) -> list[Configuration]:
    """Cross rows and grid; `given` are settings for every run, from the command line.

    Raises:
        UserError: a key that is set in two places, an empty axis, or a configuration without a method.
    """
    given = given or {}
    made = []
    for row in card.rows or [SweepRow(title="")]:
        axes = {**card.grid, **row.grid}
        _check_row(card, row, given)
        for choice in itertools.product(*axes.values()):
            point = dict(zip(axes, choice, strict=True))
            settings = {key: value for key, value in point.items() if key not in NAMES}
            method = str(point.get("method", row.method or card.method))
            if not method:
                raise UserError(f"sweep {card.title!r}: row {row.title!r} names no method")
            made.append(
                Configuration(
                    row=row.title,
                    point=point,
                    method=method,
                    recipe=str(point.get("recipe", row.recipe or card.recipe)),
                    values={**card.values, **row.values, **settings, **given},
                )
            )
    return made


def _check_row(card: SweepCard, row: SweepRow, given: Mapping[str, str]) -> None:
    where = f"sweep {card.title!r}, row {row.title!r}" if row.title else f"sweep {card.title!r}"
    places: list[Mapping[str, object]] = [card.grid, row.grid, row.values]
    for key in {*card.grid, *row.grid, *row.values}:
        if sum(key in place for place in places) > 1:
            raise UserError(f"{where}: {key} is set twice")
        if key in given:
            raise UserError(
                f"--set {key}: {where} varies it", fix="write a sweep of your own: docs/sweeps.md"
            )
        if key not in NAMES and "." not in key:
            raise UserError(f"{where}: {key!r} is neither a dotted key nor one of {', '.join(NAMES)}")
    for key, values in [*card.grid.items(), *row.grid.items()]:
        if not values:
            raise UserError(f"{where}: the axis {key} has no values")


def make(
    registry: Registry,
    name: str,
    card: SweepCard,
    *,
    out: Path,
    assignments: Sequence[str] = (),
    plugins: Sequence[Path] = (),
    typed: str = "",
) -> Sweep:
    """Plan every run of a sweep.

    Args:
        typed: what `alignbench sweep` finds it by: its file; empty: its name.

    Raises:
        UserError: names, keys or values that no run could have, naming the configuration; a metric or setting
            that the protocol lacks.
    """
    given = parse_assignments(assignments)
    lines = configurations(card, given)
    runs = []
    for seed in card.seeds:
        for line in lines:
            try:
                runs.append(_plan_run(registry, card, line, seed, out, plugins))
            except UserError as error:
                raise UserError(
                    f"sweep {name}, {line.title or line.method}: {error.what}", fix=error.fix
                ) from error
    _check_table(registry, name, card, runs[0].plan)
    known = ["base", *(line.name for line in lines)]
    for wanted in (title for claim in card.claims for title in (claim.better, claim.than)):
        if wanted not in known:
            what = f"sweep {name}: a claim names no configuration {wanted!r}.{suggest(wanted, known)}"
            raise UserError(what, fix=f"it has {', '.join(known)}")
    protocol = runs[0].plan.config.protocol
    options = [("--set", f"{key}={value}") for key, value in given.items()]
    options += [("--plugin", str(path)) for path in plugins]
    command = shlex.join(["alignbench", "sweep", typed or name, *itertools.chain(*options)])
    return Sweep(name, card, protocol, tuple(lines), tuple(runs), given, out, command)


def _plan_run(
    registry: Registry, card: SweepCard, line: Configuration, seed: int, out: Path, plugins: Sequence[Path]
) -> SweepRun:
    changes = [f"{key}={text(value)}" for key, value in line.values.items()]
    config = resolve(
        registry,
        method=line.method,
        model=card.model,
        dataset=card.data or None,
        recipe=line.recipe or None,
        protocol=card.protocol or None,
        assignments=changes,
    )
    plan = make_plan(registry, replace(config, seed=seed))
    folder = out / plan.id
    words = ["alignbench", "run", "--method", line.method, "--model", card.model, "--seed", str(seed)]
    options = [("--data", card.data), ("--recipe", line.recipe), ("--protocol", card.protocol)]
    options += [("--set", change) for change in changes] + [("--plugin", str(path)) for path in plugins]
    words += [word for option in options if option[1] for word in option]
    return SweepRun(line, seed, plan, folder, shlex.join([*words, "--out", str(folder)]))


def _check_table(registry: Registry, name: str, card: SweepCard, plan: Plan) -> None:
    """Make sure that what the best is chosen by, shown and claimed will be measured."""
    facts, has = registry.metric_facts(), plan.protocol.settings
    for metric in [card.metric, *card.columns, *(claim.metric for claim in card.claims)]:
        if metric not in facts and not plan.problems:  # a full-size protocol may name planned evaluators
            raise UserError(f"sweep {name}: no metric named {metric!r}.{suggest(metric, facts)}")
    for setting in [card.setting, *card.groups.values(), *(claim.setting for claim in card.claims)]:
        if setting and setting not in has:
            what = f"sweep {name}: protocol {plan.config.protocol} has no setting {setting!r}."
            raise UserError(what + suggest(setting, has))


# --- carrying out ---------------------------------------------------------------------------------


def carry_out(
    sweep: Sweep,
    registry: Registry,
    progress: Progress,
    *,
    workers: int = 0,
    after: Callable[[Mapping[str, str]], None] = lambda failures: None,
) -> dict[str, str]:
    """Do what is not done yet of a sweep without problems; return {run id: reason} of the runs that failed.

    `after` is called after every run with the failures so far.

    Raises:
        UserError: interrupted (exit status 3); started under torchrun.
    """
    if world_size() != 1:
        raise UserError(
            "a sweep runs in one process",
            fix=f"{sweep.command} --dry-run prints the command of each run: start those with "
            "torchrun, then the sweep again for the table",
        )
    failures: dict[str, str] = {}
    for number, run in enumerate(sweep.runs, start=1):
        title = f"[{number}/{len(sweep.runs)}] {run.configuration.title}, seed {run.seed}"
        if run.done:
            progress.say(f"{title}: done before, {run.plan.id}")
            continue
        progress.say(title)
        reason = _carry_out_one(run, registry, progress, workers)
        if reason:
            failures[run.plan.id] = reason
            progress.say(f"{title}: failed: {reason}")
        after(failures)
    return failures


def _carry_out_one(item: SweepRun, registry: Registry, progress: Progress, workers: int) -> str:
    """Do one run; return why it failed, or nothing."""
    from alignbench.runs.run import run

    _forget_memory()
    job = Job(item.plan, registry, item.folder, command=item.command, workers=workers)
    try:
        run(job, progress)
    except UserError as error:
        if error.exit_code == EXIT_PARTIAL:
            raise
        return str(error)
    except Exception as error:  # one broken configuration must not cost the others
        write_atomic(item.folder / "traceback.txt", traceback.format_exc())
        return f"{type(error).__name__}: {error} (see {item.folder / 'traceback.txt'})"
    return ""


def _forget_memory() -> None:
    """Let the next run's peak memory be its own, as far as the system can forget the past."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    reset = Path("/proc/self/clear_refs")
    if reset.exists():  # Linux: 5 resets the largest resident size
        reset.write_text("5")
