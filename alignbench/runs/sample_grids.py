"""The few images that show a model: the same image numbers of every subject, and of a policy in training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from alignbench.api import Backbone
from alignbench.config.plan import Job
from alignbench.errors import UserError, out_of_memory_as
from alignbench.evaluation.protocol import in_precision
from alignbench.progress import Progress
from alignbench.samples import grid
from alignbench.samples.generated import ImageDecoder, Sampler, labels_of

FOLDER = "training-samples"
"""In the run folder."""


@torch.no_grad()
def draw_grid(sampler: Sampler, backbone: Backbone) -> torch.Tensor:
    """Return images at the protocol's first setting and seed, uint8 [n, 3, H, W] on the CPU.

    Args:
        backbone: its tokenizer decodes.
    """
    protocol = sampler.protocol
    setting, seed = next(iter(protocol.settings.values())), protocol.seeds[0]
    candidates = range(min(200, protocol.samples))
    ids: Sequence[int] = candidates[:: protocol.images_per_prompt][: grid.MOST]  # one image of each prompt
    if protocol.labels != "prompts":
        ids = grid.choose(labels_of(protocol, sampler.num_classes, seed, candidates).tolist())
    tokens, _ = sampler.generate(setting, seed, ids)
    decoder = ImageDecoder(backbone, protocol, sampler.device)
    return decoder.decode(torch.from_numpy(tokens).long())


class TrainingGrids:
    """Draws a grid every so many steps, on the first process.

    All randomness has an address of its own, so nothing of the training changes; what the drawing takes in
    time and memory is not counted as the training's. Too little memory or disk ends the drawing, not the run.
    """

    def __init__(self, job: Job, backbone: Backbone, device: torch.device, progress: Progress) -> None:
        self._job, self._backbone, self._device, self._progress = job, backbone, device, progress
        self._every = job.grid_every

    def after_step(self, step: int) -> Path | None:
        """Draw if it is time to; return a new grid. One that is there stays, as after a resumption."""
        path = self._job.out / FOLDER / f"step-{step:06d}.png"
        if not self._every or step % self._every or path.exists():
            return None
        try:
            with out_of_memory_as("out of memory", ""):
                self._draw(path, step)
        except (UserError, OSError) as error:
            self._every = 0
            self._progress.say(f"no more sample grids, the run goes on: step {step}: {error}")
            return None
        return path

    def _draw(self, path: Path, step: int) -> None:
        plan = self._job.plan
        sampled = in_precision(self._backbone, plan.protocol)
        prompts, classes = plan.requirements.prompts, plan.model.num_classes or 1
        sampler = Sampler(sampled, plan.protocol, classes, self._device, prompts)
        images = draw_grid(sampler, self._backbone)
        title = f"{plan.config.model} + {plan.config.method}, step {step}"
        path.parent.mkdir(exist_ok=True)
        grid.write_grid(path, [(title, images)])
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._device)
