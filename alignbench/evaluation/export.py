"""Write scored images for other programs: ADM sample files, PNG files, GenEval's folder layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from alignbench.evaluation.evaluate import Evaluation
from alignbench.progress import Progress
from alignbench.run_folder import row_files
from alignbench.samples import geneval_layout
from alignbench.samples.writers import load_all, whole_folder, write_npz, write_png


def export_images(evaluation: Evaluation, forms: Sequence[str], progress: Progress) -> None:
    """Write every image set of a subject under `images/` in its folder; what is there already stays.

    Args:
        evaluation: whose sets; scored.
        forms: `npz` for `<setting>-seed-<seed>.npz`; `png` for a folder of the same name, which has GenEval's
            layout where images have prompts.
    """
    for form in forms:
        for setting in evaluation.protocol.settings:
            for seed in evaluation.protocol.seeds:
                images = evaluation.sets(setting, seed)
                name = f"{setting}-seed-{seed}{'.npz' if form == 'npz' else ''}"
                path = evaluation.folder / "images" / evaluation.subject / name
                if path.exists():
                    continue
                with progress.stage(f"write {path.name}", len(images.shards())) as stage:
                    if form == "npz":
                        write_npz(path, images, stage)
                    elif evaluation.protocol.prompts:
                        with whole_folder(path) as unfinished:
                            geneval_layout.write_layout(unfinished, load_all(images, stage))
                        _write_verdicts(path, evaluation, setting, seed)
                    else:
                        write_png(path, images, stage)


def _write_verdicts(path: Path, evaluation: Evaluation, setting: str, seed: int) -> None:
    """Write `results-<evaluator>.jsonl`, in the official form, for evaluators that scored each image."""
    for name in evaluation.evaluators:
        rows = []
        for file in row_files(evaluation.folder, evaluation.subject, setting, seed, name):
            with np.load(file) as columns:
                if {"correct", "reason"} <= set(columns.files):
                    rows.append((columns["correct"], columns["reason"]))
        if rows:
            correct, reasons = (np.concatenate(parts) for parts in zip(*rows, strict=True))
            layout = geneval_layout.read_layout(path)
            target = path / f"results-{name}.jsonl"
            geneval_layout.write_results(target, layout, correct.tolist(), reasons.tolist())
