"""The training half of a run, put together: data, model, what is trained, its optimiser, method, driver."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from alignbench.api import Backbone, Method
from alignbench.assembly import build_method, build_model, text_conditions, trained_module
from alignbench.config.plan import Job
from alignbench.data.dataset import ImageDataset
from alignbench.data.stream import Stream
from alignbench.driver import Driver, parameter_groups
from alignbench.parallel import Parallel
from alignbench.progress import Progress


@dataclass(frozen=True)
class Training:
    """A driver that is ready to train, and what it trains."""

    driver: Driver
    backbone: Backbone
    trainable: int
    """Numbers that train."""


@contextlib.contextmanager
def prepared(
    job: Job,
    dataset: ImageDataset,
    parallel: Parallel,
    progress: Progress,
    *,
    around: Callable[[Method], Method] = lambda method: method,
) -> Iterator[Training]:
    """Build everything a plan trains with; decoding threads end with the block.

    Args:
        job: what to train and where its logs and checkpoints go.
        dataset: the training images.
        parallel: the devices.
        progress: where messages go.
        around: puts something around the method, e.g. a clock.

    Raises:
        UserError: what the plan names does not fit together.
    """
    plan = job.plan
    assert plan.method is not None
    train = plan.config.train
    backbone = build_model(plan, parallel.device)
    backbone.recompute(train.recompute)
    module = trained_module(backbone, plan.method.updates)
    trainable = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(
        parameter_groups(module, train.weight_decay),
        lr=train.lr,
        betas=(train.beta1, train.beta2),
        eps=train.eps,
        fused=parallel.device.type == "cuda",
    )
    module, optimizer = parallel.wrap(module, optimizer)
    # So that `backbone.logits` computes in the precision of the run, whatever is trained.
    backbone.policy = module if plan.method.updates == "policy" else parallel.wrap_frozen(backbone.policy)
    # After wrapping: a frozen reference is a copy and must compute in the same precision.
    method = around(build_method(job, backbone, parallel.device))
    with Stream(
        dataset,
        seed=plan.config.seed,
        images_per_step=train.images_per_step,
        workers=job.workers,
        text_condition=text_conditions(plan, backbone),
    ) as stream:
        driver = Driver(
            train,
            method=method,
            module=module,
            optimizer=optimizer,
            stream=stream,
            parallel=parallel,
            folder=job.out,
            progress=progress,
            checkpoint_every=job.checkpoint_every,
        )
        yield Training(driver, backbone, trainable)
