"""Logs of scored images: what their headers say of a run, and the page that shows the worst and the best."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from alignbench.api import ImageSet
from alignbench.config.plan import Job
from alignbench.errors import UserError
from alignbench.evaluation.evaluate import Evaluation
from alignbench.evaluation.extremes import Group, Place, extremes, facts_of, values_of
from alignbench.evaluation.protocol import ProtocolEvaluation
from alignbench.evaluation.sample_log import FORM, ImageNotes
from alignbench.files import write_atomic
from alignbench.html.render import data_uri
from alignbench.html.samples import FILE_NAME, page
from alignbench.progress import Progress
from alignbench.record import Result, Subject
from alignbench.samples.pixels import channels_last
from alignbench.training.reward_parts import TrainingRewards
from alignbench.training.setup import names_of

SMALL = 64
"""Images of so many pixels a side or fewer are shown as they are."""
THUMBNAIL = 160
"""Side of what is shown of others."""
PAGE_BYTES = 6 << 20
"""Of all pictures of a page, which can be mailed then; fewer are shown where they take more."""


def about_run(run: str, title: str, evaluation: ProtocolEvaluation) -> dict[str, Any]:
    """Return the beginning of a header."""
    protocol = {"name": evaluation.name, "title": evaluation.protocol.title}
    digests = {"digest": evaluation.requirements.digest, "reference": evaluation.references.digest}
    return {"sample-log": FORM, "run": run, "title": title, "protocol": protocol | digests}


def notes_of(
    job: Job, subject: Subject, evaluation: ProtocolEvaluation, rewards: TrainingRewards, progress: Progress
) -> ImageNotes:
    """Return what is noted of a run's images; class names that cannot be read are said and left out."""
    plan = job.plan
    title = plan.model.title
    if subject == "method" and plan.method is not None:
        title = f"{title} + {plan.method.title}"
    names: Sequence[str] = ()
    if plan.model.condition == "class":
        try:
            names = names_of(plan, job.registry)
        except UserError as error:
            progress.say(f"the log has no class names: {error}")
    return ImageNotes(about_run(plan.id, title, evaluation), names, rewards)


def write_logs(
    models: Sequence[Evaluation], results: Sequence[Result], shown: int, progress: Progress
) -> None:
    """Write the logs of all subjects, and the page with the `shown` worst and best images of each score."""
    folders, sets = set(), []
    groups: list[Group] = []
    for model in models:
        paths = model.write_logs(results, progress)
        for setting in model.protocol.settings:
            own = [paths[model.addresses.index((setting, seed))] for seed in model.protocol.seeds]
            group = extremes(own, shown)
            groups.append(group)
            images = [model.sets(setting, seed) for seed in model.protocol.seeds]
            sets.append(_shown(group, images, [path.name for path in own]))
        folders.add(paths[0].parent)
    header = groups[0].headers[0]
    for spec, why in header["rewards_left_out"].items():
        progress.say(f"the log has no {spec}: it {why}")
    count = _fit(sets, shown)
    about = {
        "run": header["run"], "protocol": header["protocol"]["title"], "wanted": shown, "shown": count,
        "digest": header["protocol"]["digest"][7:15], "left_out": header["rewards_left_out"],
        "small": all(picture["small"] for one in sets for picture in one["pictures"]),
    }  # fmt: skip
    (folder,) = folders
    write_atomic(folder / FILE_NAME, page(sets, facts_of(header), about))
    progress.say(f"log of samples: {folder / FILE_NAME}")


def _shown(group: Group, images: Sequence[ImageSet], files: Sequence[str]) -> dict[str, Any]:
    """Return what a page shows of one subject at one setting; see `html.samples.page`."""
    header, columns = group.headers[0], list(facts_of(group.headers[0]))
    places = sorted(group.lines)
    pixels = _pixels(images, places)
    pictures = []
    for place in places:
        line, (picture, original) = group.lines[place], pixels[place]
        values, name = values_of(line), line.get("name")
        asked = line.get("prompt", f"{line['class']}: {name}" if name else str(line.get("class", "")))
        pictures.append({
            "id": line["id"], "seed": line["seed"], "asked": asked,
            "group": line["tag"] if "prompt" in line else asked,
            "src": _address(picture), "original": "" if original is None else _address(original),
            "small": max(picture.shape) <= SMALL, "values": [values.get(column, "") for column in columns],
        })  # fmt: skip
    at = {place: number for number, place in enumerate(places)}
    ends = {columns.index(name): found for name, found in group.found.items()}
    return {
        "subject": header["subject"], "title": header["title"], "setting": header["setting"]["title"],
        "files": list(files), "images": sum(x["images"] for x in group.headers), "pictures": pictures,
        "worst": {column: [at[place] for place in one.worst] for column, one in ends.items()},
        "best": {column: [at[place] for place in one.best] for column, one in ends.items()},
        "tied": {column: one.tied for column, one in ends.items()},
    }  # fmt: skip


def _pixels(
    images: Sequence[ImageSet], places: Sequence[Place]
) -> Mapping[Place, tuple[np.ndarray, np.ndarray | None]]:
    """Load the images at some places with their originals, [H, W, 3] each; no shard twice."""
    wanted = defaultdict(list)
    for file, position in places:
        shards = images[file].shards()
        number = next(number for number, ids in enumerate(shards) if position < ids.stop - shards[0].start)
        wanted[file, number].append(position)
    found: dict[Place, tuple[np.ndarray, np.ndarray | None]] = {}
    for (file, number), positions in wanted.items():
        batch, first = images[file].load(number), images[file].shards()[number].start
        rows = [position - first for position in positions]
        pictures = channels_last(batch.images[rows])
        originals = None if batch.originals is None else channels_last(batch.originals[rows])
        for row, position in enumerate(positions):
            found[file, position] = (pictures[row], None if originals is None else originals[row])
    return found


def _address(picture: np.ndarray) -> str:
    image, buffer = Image.fromarray(picture), io.BytesIO()
    if max(picture.shape) <= SMALL:
        image.save(buffer, format="PNG")
        return data_uri(buffer.getvalue())
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    image.save(buffer, format="JPEG", quality=85)
    return data_uri(buffer.getvalue(), "image/jpeg")


def _fit(sets: Sequence[dict[str, Any]], count: int) -> int:
    """Leave out pictures until the page is small enough; return how many stay at each end."""
    while True:
        total = 0
        for one in sets:
            _keep(one, count)
            total += sum(len(picture["src"]) + len(picture["original"]) for picture in one["pictures"])
        if total <= PAGE_BYTES or count == 1:
            return count
        count //= 2
        for one in sets:
            one["tied"] = {}  # of the longer lists


def _keep(one: dict[str, Any], count: int) -> None:
    """Cut both ends of every score to `count` pictures, and drop those that no end needs."""
    for end in ("worst", "best"):
        one[end] = {column: numbers[:count] for column, numbers in one[end].items()}
    used = sorted({n for end in ("worst", "best") for numbers in one[end].values() for n in numbers})
    at = {number: place for place, number in enumerate(used)}
    one["pictures"] = [one["pictures"][number] for number in used]
    for end in ("worst", "best"):
        one[end] = {column: [at[number] for number in numbers] for column, numbers in one[end].items()}
