"""Write scored images for other programs: ADM sample files and PNG files."""

from __future__ import annotations

from collections.abc import Sequence

from alignbench.evaluation import Evaluation
from alignbench.progress import Progress


def export_images(evaluation: Evaluation, forms: Sequence[str], progress: Progress) -> None:
    """Write every image set of a subject under `images/` in its folder; what is there already stays.

    Args:
        evaluation: whose sets.
        forms: `npz` for `<setting>-seed-<seed>.npz`, `png` for a folder of the same name.
        progress: told what happens.
    """
    if not forms:
        return
    from alignbench.data.writers import write_npz, write_png

    for form in forms:
        for setting in evaluation.protocol.settings:
            for seed in evaluation.protocol.seeds:
                images = evaluation.sets(setting, seed)
                place = evaluation.folder / "images" / evaluation.subject / f"{setting}-seed-{seed}"
                path = place.with_name(f"{place.name}.npz") if form == "npz" else place
                if path.exists():
                    continue
                with progress.stage(f"write {path.name}", len(images.shards())) as stage:
                    writer = write_npz if form == "npz" else write_png
                    writer(path, images, stage)
