"""The text encoder of a model: its files, where they are an asset, and what is lacking."""

from __future__ import annotations

from alignbench.config.settings import RunConfig
from alignbench.errors import Problem, UserError, missing_packages
from alignbench.hub.locate import locate_asset
from alignbench.hub.verify import AssetFile, verify_asset
from alignbench.registry.lookup import Registry
from alignbench.registry.schema import ModelCard


def find_text_encoder(
    registry: Registry, config: RunConfig, model: ModelCard
) -> tuple[AssetFile | None, list[Problem]]:
    """Find the files of a model's text encoder where they are an asset, and say what is lacking.

    With random weights the text features are random too and need no files.
    """
    spec = model.text
    if spec is None or config.section("model")["weights"] == "random":
        return None, []
    missing, fix = missing_packages(spec.packages, spec.extra)
    problems = [Problem("text encoder", f"needs {', '.join(missing)}", fix)] if missing else []
    if not spec.asset:
        return None, problems
    card = registry.asset(spec.asset)
    status = locate_asset(spec.asset, card, str(config.section("assets").get(spec.asset, "")))
    try:
        return verify_asset(status), problems
    except UserError as error:
        return None, [*problems, Problem(f"assets/{spec.asset}", error.what, error.fix)]
