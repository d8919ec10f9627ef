"""`alignbench evaluate` and `alignbench sample`: a model as it is, or a finished run's export."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import typer
from rich.console import Console

from alignbench import plan as planning
from alignbench import plugins
from alignbench.cli.run import DEFAULT_OUT, PLUGIN_HELP, plan_lines, refuse, show_plan, show_record
from alignbench.config import RunConfig, resolve
from alignbench.errors import UserError
from alignbench.folder import check_folder
from alignbench.progress import Progress
from alignbench.registry.catalogue import Catalogue


def evaluate(
    model: str = typer.Option(..., "--model", help="Model to evaluate; see: list models."),
    protocol: str | None = typer.Option(None, "--protocol", help="Protocol; default: the model's."),
    assignments: list[str] = typer.Option(
        [], "--set", metavar="KEY=VALUE", help="e.g. model.policy=PATH for other weights; repeatable."
    ),
    out: Path | None = typer.Option(None, "--out", help="Run folder; default: runs/<id>."),
    plugin: list[Path] = typer.Option([], "--plugin", help=PLUGIN_HELP),
    dry_run: bool = typer.Option(False, "--dry-run", help="Print the plan and stop."),
    as_json: bool = typer.Option(False, "--json", help="Print the plan or the record as JSON."),
) -> None:
    """Sample a model under a protocol and score it: a base row for the leaderboard."""
    catalogue = plugins.catalogue(plugin)
    config = resolve(catalogue, method=None, model=model, protocol=protocol, assignments=assignments)
    only(config, "model", "protocol")
    plan = planning.make_plan(catalogue, config)
    if dry_run:
        show_plan(plan, plan.problems, as_json=as_json)
        raise typer.Exit(2 if plan.problems else 0)
    refuse(plan, plan.problems)
    folder = out or DEFAULT_OUT / plan.id
    check_folder(folder, plan)
    from alignbench import runner
    from alignbench.job import Job

    job = Job(plan, catalogue, folder, command=shlex.join(["alignbench", *sys.argv[1:]]))
    progress = Progress()
    for line in plan_lines(plan):
        progress.say(line)
    show_record(runner.run(job, progress), catalogue, folder, as_json=as_json)


def sample(
    model: str = typer.Option(..., "--model", help="Model to sample from; see: list models."),
    run: Path | None = typer.Option(None, "--run", help="Use the weights a finished run exported."),
    number: int = typer.Option(40, "--number", "-n", min=1, help="Images."),
    seed: int = typer.Option(0, "--seed", help="Sampling seed; image i depends on nothing else."),
    labels: str = typer.Option("", "--classes", help="Class ids, e.g. 3,7; default: all in turn."),
    temperature: float = typer.Option(1.0, "--temperature", min=0.01),
    top_k: int = typer.Option(0, "--top-k", min=0),
    top_p: float = typer.Option(1.0, "--top-p", min=0.0, max=1.0),
    cfg_scale: float = typer.Option(1.0, "--cfg", min=0.0, help="Guidance; 1: off."),
    assignments: list[str] = typer.Option([], "--set", metavar="KEY=VALUE", help="model.* keys; repeatable."),
    out: Path = typer.Option(Path("samples"), "--out", help="Folder for PNG files and grid.png."),
) -> None:
    """Draw images from a model, or from what a run made of it, into PNG files and a grid."""
    catalogue = Catalogue.default()
    config = resolve(catalogue, method=None, model=model, assignments=assignments)
    only(config, "model")
    plan = planning.make_plan(catalogue, config, evaluates=False)
    refuse(plan, plan.problems)
    from alignbench import drawing
    from alignbench.api import Sampling

    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, cfg_scale=cfg_scale)
    written = drawing.draw(
        plan, run=run, number=number, seed=seed, classes=labels, sampling=sampling, out=out
    )
    Console().print(f"{number} images in {out}, all of them in {written}", highlight=False, soft_wrap=True)


def only(config: RunConfig, *sections: str) -> None:
    """Refuse values that nothing would read.

    Raises:
        UserError: naming the first such key.
    """
    for key in config.changed():
        if key.partition(".")[0] not in sections:
            raise UserError(f"{key} changes nothing here", fix="leave it out")
