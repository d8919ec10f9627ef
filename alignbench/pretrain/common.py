"""What all pretraining stages share: the training loop, the tokenizer, augmentation, the manifest."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn
from torch.nn import functional as F

from alignbench import __version__, randomness
from alignbench.backbones.llamagen.model import vq_config
from alignbench.backbones.llamagen.vq import VQModel
from alignbench.data.digits import Digits
from alignbench.data.shapes import Shapes
from alignbench.files import write_atomic
from alignbench.registry.schema import ModelCard
from alignbench.samples.real import DatasetImages

Progress = Callable[[str, int, int, str], None]
"""Called as (stage, steps done, steps in all, note)."""

TAIL = 50
"""Training losses are reported as means over this many last steps."""


TOKENIZER, POLICY = "tokenizer", "policy"
"""Stages that both models have, and the names of their files."""
USAGE_WINDOW = 4096
"""Recent codes the tokenizer's usage buffer holds; it is part of the file, so it is kept short."""


def pixels_of(dataset: Digits | Shapes) -> Tensor:
    """Return all images as [N, 3, S, S] float32 in [-1, 1]."""
    return torch.cat(list(DatasetImages(dataset).images())).float() / 127.5 - 1


def reconstruct(model: VQModel, images: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Return [N, 3, S, S] reconstructions, their error and how many codes the images use."""
    tokens = model.encode(images)
    side = images.shape[-1] // model.downsample
    rebuilt = model.decode(tokens, (side, side))
    return rebuilt, {"mse": F.mse_loss(rebuilt, images).item(), "codes_used": float(len(tokens.unique()))}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long and how fast one stage trains."""

    steps: int
    batch: int
    lr: float
    """Peak; reached after `warmup` steps, then a cosine to 0."""
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    warmup: int = 20
    grad_clip: float = 1.0


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: sums over several are not the same twice, and these networks gain nothing."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def batches(seed: int, stage: str, *, size: int, budget: Budget) -> Iterator[Tensor]:
    """Yield [batch] int64 row numbers for each step.

    Epochs are permutations; what does not fill a batch at the end of one is left out.
    """
    per_epoch = size // budget.batch
    if per_epoch == 0:
        raise ValueError(f"{stage}: {size} images do not fill a batch of {budget.batch}")
    for step in range(budget.steps):
        epoch, position = divmod(step, per_epoch)
        if position == 0:
            order = torch.from_numpy(randomness.permutation(seed, f"pretrain/{stage}", epoch, size))
        yield order[position * budget.batch : (position + 1) * budget.batch]


def learning_rate(step: int, budget: Budget) -> float:
    """Linear warm-up, then half a cosine to 0 at the end."""
    if step < budget.warmup:
        return budget.lr * (step + 1) / budget.warmup
    past = (step - budget.warmup) / max(1, budget.steps - budget.warmup)
    return budget.lr * 0.5 * (1 + math.cos(math.pi * past))


NetT = TypeVar("NetT", bound=nn.Module)


@dataclass(frozen=True)
class Made(Generic[NetT]):
    """A trained module and what there is to say of it; goes into the manifest."""

    net: NetT
    budget: Budget
    seconds: float = 0.0
    training: Mapping[str, float] = field(default_factory=dict)
    """Losses averaged over the last steps."""
    validation: Mapping[str, float] = field(default_factory=dict)
    metadata: dict[str, str] | None = None
    """Goes into the file beside the weights."""


@dataclass(frozen=True)
class Trainer:
    """Trains the stages of one model."""

    budgets: Mapping[str, Budget]
    seed: int
    """Of initial weights, order of images and dropout; a stage's name is in the address of its numbers."""
    progress: Progress
    """Told after every step."""

    def initial(self, stage: str) -> contextlib.AbstractContextManager[None]:
        """Seed torch for the initial weights of a stage."""
        return randomness.torch_seed(torch.device("cpu"), self.seed, f"pretrain/{stage}/init")

    def new_tokenizer(self, card: ModelCard) -> VQModel:
        """Return a tokenizer of the card's geometry with initial weights."""
        with self.initial(TOKENIZER):
            return VQModel(replace(vq_config(card), usage_window=USAGE_WINDOW))

    def fit(
        self, stage: str, net: NetT, losses_of: Callable[[Tensor], Mapping[str, Tensor]], *, size: int
    ) -> Made[NetT]:
        """Train a network with AdamW and leave it in evaluation mode.

        Args:
            losses_of: row numbers [batch] → named scalars, of which `loss` is minimised; each is reported as
                its mean over the last `TAIL` steps.
            size: training images.
        """
        started, budget = time.monotonic(), self.budgets[stage]
        betas = (budget.beta1, budget.beta2)
        optimizer = torch.optim.AdamW(
            net.parameters(), lr=budget.lr, betas=betas, weight_decay=budget.weight_decay
        )
        net.train()
        tail: list[dict[str, float]] = []
        with randomness.torch_seed(torch.device("cpu"), self.seed, f"pretrain/{stage}/dropout"):
            for step, rows in enumerate(batches(self.seed, stage, size=size, budget=budget)):
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(step, budget)
                losses = losses_of(rows)
                optimizer.zero_grad(set_to_none=True)
                losses["loss"].backward()
                torch.nn.utils.clip_grad_norm_(net.parameters(), budget.grad_clip, error_if_nonfinite=True)
                optimizer.step()
                tail = [*tail[1 - TAIL :], {name: value.item() for name, value in losses.items()}]
                self.progress(stage, step + 1, budget.steps, f"loss {tail[-1]['loss']:.4f}")
        net.eval()
        means = {name: sum(entry[name] for entry in tail) / len(tail) for name in tail[-1]}
        return Made(net, budget, time.monotonic() - started, means)


def write(
    folder: Path,
    made: Mapping[str, Made[Any]],
    *,
    model: str,
    seed: int,
    splits: Mapping[str, Digits | Shapes],
) -> dict[str, Any]:
    """Write one file a network, by its name without its end, and `manifest.json`; returns the manifest."""
    manifest = {
        "schema": 1,
        "model": model,
        "made_by": f"alignbench pretrain {model} --seed {seed}",
        "alignbench": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, 1 thread",
        "seed": seed,
        "data": {name: {"images": len(split), "digest": split.digest} for name, split in splits.items()},
        "seconds": round(sum(part.seconds for part in made.values()), 1),
        "files": {f"{name}.safetensors": _write_one(folder, name, part) for name, part in made.items()},
    }
    write_atomic(folder / "manifest.json", json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    return manifest


def _write_one(folder: Path, name: str, made: Made[Any]) -> dict[str, Any]:
    state = {key: tensor.contiguous() for key, tensor in made.net.state_dict().items()}
    content = to_safetensors(state, metadata=made.metadata)
    write_atomic(folder / f"{name}.safetensors", content)
    return {
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "parameters": sum(parameter.numel() for parameter in made.net.parameters()),
        "seconds": round(made.seconds, 1),
        "budget": asdict(made.budget),
        "training": {key: round(value, 6) for key, value in made.training.items()},
        "validation": {key: round(value, 6) for key, value in made.validation.items()},
    }


ROTATION = math.radians(6)
SCALE = 0.05
SHIFT = 0.25
"""Pixels."""
GREY_STEP = 2 / 16
"""Distance of two grey levels of the digits in [-1, 1]."""


def augment(images: Tensor) -> Tensor:
    """Rotate, scale and shift each image a little and spread its grey levels.

    Draws from torch's global generator.

    Args:
        images: [N, 3, S, S] float in [-1, 1], three equal channels, black (-1) beyond the border.

    Returns:
        The same shape; up to half a grey level outside [-1, 1].
    """
    count, _, _, side = images.shape
    angle, size, right, down = (torch.rand(4, count) * 2 - 1).unbind()
    cos, sin = torch.cos(ROTATION * angle), torch.sin(ROTATION * angle)
    zoom = 1 + SCALE * size
    step = SHIFT * 2 / side  # the grid's coordinates span [-1, 1]
    rows = [cos / zoom, -sin / zoom, step * right, sin / zoom, cos / zoom, step * down]
    matrices = torch.stack(rows, dim=1).unflatten(1, (2, 3))  # [N, 2, 3]
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    # Shifted by 1 so that the zeros beyond the border are black.
    moved = F.grid_sample(images + 1, grid, mode="bicubic", padding_mode="zeros", align_corners=False) - 1
    noise = (torch.rand(count, 1, side, side) - 0.5) * GREY_STEP
    return moved.clamp(-1, 1) + noise
