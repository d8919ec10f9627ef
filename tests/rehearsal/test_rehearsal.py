"""The whole rehearsal, or its server and its cards alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rehearsal.__main__ import readme_block, rehearse


@pytest.mark.heavy
def test_the_real_experiment_on_files_of_the_official_form(tmp_path: Path) -> None:
    assert "Everything together took" in rehearse(tmp_path)


def test_the_readme_has_the_commands_that_are_rehearsed() -> None:
    dry_run, fetch, run = readme_block()
    assert "--dry-run" in dry_run and fetch.startswith("alignbench fetch ") and "data.root=" in run
