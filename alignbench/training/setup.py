"""What a plan names, built: the model, the training data, the method with its rewards, what is trained."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from alignbench.api import Backbone, Method, Reward, TextEncoder, Updates
from alignbench.backbones.base import CachedBackbone, unwrap
from alignbench.backbones.load import load_backbone, load_text_encoder
from alignbench.config.plan import Job, Plan
from alignbench.data.dataset import ImageDataset, open_dataset
from alignbench.data.decode import ProgressCallback
from alignbench.data.stream import Stream
from alignbench.errors import failure_of
from alignbench.files import write_atomic
from alignbench.hub.verify import verify
from alignbench.progress import PLAIN_INTERVAL, Progress
from alignbench.registry import interfaces
from alignbench.registry.class_names import class_names
from alignbench.registry.lookup import Registry
from alignbench.rewards.build import Placed, build
from alignbench.text import class_line
from alignbench.training.adapter import Adapter, attach
from alignbench.training.driver import Driver, parameter_groups
from alignbench.training.parallel import Parallel


def build_model(plan: Plan, device: torch.device) -> Backbone:
    """Build a plan's model as it is before training.

    Raises:
        UserError: its files do not fit.
    """
    files = None if plan.random_weights else {role: status.path for role, status in plan.weights.items()}
    encoder = _text_encoder(plan, device) if plan.model.text else None
    section = plan.config.section("model")
    return load_backbone(
        plan.config.model, plan.model, files, text_encoder=encoder, options=section, device=device
    )


def _text_encoder(plan: Plan, device: torch.device) -> TextEncoder:
    if plan.random_weights:
        return load_text_encoder(plan.model, None, device)
    if plan.text is not None:
        return load_text_encoder(plan.model, (plan.text.path, plan.text.sha256), device)
    status = plan.weights["text"]
    assert status.path is not None
    return load_text_encoder(plan.model, (status.path, verify(status)), device)


def open_stream(plan: Plan, backbone: Backbone, dataset: ImageDataset, workers: int) -> Stream:
    """Prepare batches as a plan's method and model want them: images, captions, mismatched conditions."""
    return Stream(
        dataset,
        seed=plan.config.seed,
        images_per_step=plan.config.train.images_per_step,
        workers=workers,
        text_condition=backbone.text_condition if plan.model.condition == "text" else None,
        images=plan.method is None or "images" in plan.method.needs,
        mismatched=plan.method is not None and "others" in plan.method.needs,
    )


def open_training_data(job: Job, progress: Progress) -> ImageDataset:
    """Open the training split and say what was left out."""
    card = job.registry.dataset(job.plan.config.dataset)
    dataset = open_dataset(
        card,
        split=card.train_split,
        image_size=job.plan.model.image_size,
        num_classes=job.plan.model.num_classes,
        options=job.plan.config.section("data"),
        workers=job.workers,
        cache_dir=job.cache / "data",
        progress=_telling(progress),
    )
    if job.plan.model.condition == "class":
        progress.say(class_line(dataset.class_names))
    for note in getattr(dataset, "notes", ()):  # data sets of plug-ins need have none
        progress.say(note)
    for skipped in dataset.skipped[:5]:
        progress.say(f"left out {skipped.path}: {skipped.reason}")
    if dataset.skipped:
        listed = job.out / "left-out.txt"
        write_atomic(listed, "".join(f"{skipped.path}: {skipped.reason}\n" for skipped in dataset.skipped))
        progress.say(f"left out {len(dataset.skipped)} unreadable images in all; see {listed}")
    return dataset


def _telling(progress: Progress) -> ProgressCallback:
    """Say now and then how many images were fetched or looked at, which can take hours."""
    said = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal said
        if time.monotonic() - said >= PLAIN_INTERVAL:
            said = time.monotonic()
            progress.say(f"training images {done}/{total}")

    return tell


def reward_builder(
    plan: Plan, registry: Registry, device: torch.device, *, image_size: int
) -> Callable[[str], Reward]:
    """Return what builds a plan's rewards from their specifications; equal networks are loaded once."""
    shared: dict[tuple[object, ...], Placed] = {}

    def reward(spec: str) -> Reward:
        return build(
            spec,
            registry,
            device,
            class_names=lambda: names_of(plan, registry),
            image_size=image_size,
            assets=plan.config.section("assets"),
            shared=shared,
        )

    return reward


def names_of(plan: Plan, registry: Registry) -> Sequence[str]:
    """Return the name of each class of a plan's data, perhaps none; raises UserError as `class_names`."""
    names = str(plan.config.section("data").get("names", ""))
    return class_names(registry.dataset(plan.config.dataset), names, plan.model.num_classes)


def build_method(job: Job, backbone: Backbone, device: torch.device) -> Method:
    """Build the method from its card and the resolved options.

    Raises:
        UserError: the method's class lacks what the interface needs, or its options contradict each other.
    """
    name = job.plan.config.method
    assert name is not None
    target = interfaces.load(job.registry, "methods", name)

    reward = reward_builder(job.plan, job.registry, device, image_size=job.plan.model.image_size)
    options = {key: option.default for key, option in job.registry.method(name).options.items()}
    with failure_of(f"method {name!r}"):
        config = target.Config(**{**options, **job.plan.config.section("method")})
        method: Method = target(config, backbone=backbone, reward=reward, seed=job.plan.config.seed)
    return method


def trained_module(backbone: Backbone, updates: Updates) -> nn.Module:
    """Return what a method trains; afterwards gradients reach that and nothing else of the backbone."""
    decoder = backbone.tokenizer.trainable_decoder()
    backbone.policy.requires_grad_(updates == "policy")
    decoder.requires_grad_(updates == "decoder")
    return backbone.policy if updates == "policy" else decoder


def prepare_trained(plan: Plan, backbone: Backbone) -> tuple[nn.Module, Adapter | None]:
    """Return what a plan trains, and the adapter where that is one; nothing else gets gradients.

    Raises:
        UserError: the model's card does not fit its network.
    """
    assert plan.method is not None
    if plan.lora is None:
        return trained_module(backbone, plan.method.updates), None
    trained_module(backbone, "policy")  # the decoder stands still
    adapter = attach(unwrap(backbone.policy), plan.lora, plan.config.seed)
    if isinstance(backbone, CachedBackbone):  # others hold a whole copy for a reference
        backbone.adapter_off = adapter.off
    return adapter.weights, adapter


def role_of(plan: Plan) -> str:
    """Which file a method changes."""
    assert plan.method is not None
    return "policy" if plan.method.updates == "policy" else "tokenizer"


@dataclass(frozen=True)
class Training:
    """A driver that is ready to train, and what it trains."""

    driver: Driver
    backbone: Backbone
    trainable: int
    """Numbers that train."""
    adapter: Adapter | None
    """What trains, where it is an adapter in the backbone's policy."""


@contextlib.contextmanager
def prepared(job: Job, dataset: ImageDataset, parallel: Parallel, progress: Progress) -> Iterator[Training]:
    """Build everything a plan trains with; decoding threads end with the block.

    Raises:
        UserError: what the plan names does not fit together.
    """
    plan = job.plan
    assert plan.method is not None
    train = plan.config.train
    backbone = build_model(plan, parallel.device)
    backbone.recompute(train.recompute)
    module, adapter = prepare_trained(plan, backbone)
    trainable = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    module = parallel.prepare(module)
    # So that `backbone.logits` computes in the precision of the run, whatever is trained.
    whole = plan.method.updates == "policy" and adapter is None
    backbone.policy = module if whole else parallel.prepare(backbone.policy)
    # After wrapping: a frozen reference is a copy and must compute in the same precision. Before cutting:
    # shards cannot be copied.
    method = build_method(job, backbone, parallel.device)
    kind = parallel.shard_kind(train.shard, plan.estimate.train_gib) if adapter is None else "none"
    # The decoder is not computed in the run's precision in one piece either.
    parallel.shard(module, kind, cast=plan.method.updates == "policy")
    optimizer = torch.optim.AdamW(
        parameter_groups(module, train.weight_decay),
        lr=train.lr,
        betas=(train.beta1, train.beta2),
        eps=train.eps,
        fused=parallel.device.type == "cuda",
    )
    with open_stream(plan, backbone, dataset, job.workers) as stream:
        driver = Driver(
            train,
            method=method,
            module=module,
            optimizer=parallel.prepare_optimizer(optimizer),
            stream=stream,
            parallel=parallel,
            folder=job.out,
            progress=progress,
            checkpoint_every=job.checkpoint_every,
        )
        yield Training(driver, backbone, trainable, adapter)
