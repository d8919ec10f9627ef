"""What a plan names, built: the model, the training data, the method with its rewards, what is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from alignbench.api import Backbone, Condition, Method, Reward, TextEncoder, Updates
from alignbench.backbones.containers import load_strict, read_state_dict
from alignbench.backbones.text_cache import CachedText
from alignbench.backbones.text_random import RandomText
from alignbench.config.plan import Job, Plan
from alignbench.data.dataset import ImageDataset, open_dataset
from alignbench.errors import UserError
from alignbench.files import write_atomic
from alignbench.hub import weights
from alignbench.progress import Progress
from alignbench.registry import interfaces
from alignbench.registry.lookup import import_target
from alignbench.rewards.build import build as build_reward
from alignbench.rewards.class_names import class_names
from alignbench.rewards.placement import Placed


def build_model(plan: Plan, device: torch.device) -> Backbone:
    """Build the model as it is before training."""
    build = import_target(str(plan.model.target))
    files = None if plan.random_weights else {role: status.path for role, status in plan.weights.items()}
    # A plug-in's backbone knows of a text encoder only if its card names one.
    more: dict[str, Any] = {"encoder": build_text_encoder(plan, device)} if plan.model.text else {}
    section = plan.config.section("model")
    more |= {key: section[key] for key in plan.model.options}
    backbone: Backbone = build(plan.model, files, seed=0, device=device, **more)
    interfaces.require(f"model {plan.config.model!r}", backbone, interfaces.OBJECT_MEMBERS["models"])
    return backbone


def build_text_encoder(plan: Plan, device: torch.device) -> TextEncoder:
    """Build the text encoder that the model's card names, behind the cache of features.

    Random weights go with random features.

    Raises:
        UserError: its files do not fit.
    """
    spec, shape = plan.model.text, plan.model.policy
    assert spec is not None
    if shape.caption_dim is None:
        raise UserError("a text-conditional model card needs policy.caption_dim", fix="add it to the card")
    size = {"slots": shape.condition_tokens, "width": shape.caption_dim}
    if plan.random_weights:
        return RandomText(**size, device=device)
    if plan.text is not None:
        path, digest = plan.text.path, plan.text.sha256
    else:
        status = plan.weights["text"]
        assert status.path is not None
        path, digest = status.path, weights.verify(status)
    encoder: TextEncoder = import_target(spec.target)(path, digest=digest, device=device, **size)
    return CachedText(encoder, weights.cache_root() / "text", device=device)


def text_conditions(plan: Plan, backbone: Backbone) -> Callable[[Sequence[str]], Condition] | None:
    """What a `Stream` makes of captions; None for class-conditional models."""
    return backbone.text_condition if plan.model.condition == "text" else None


def open_training_data(job: Job, progress: Progress) -> ImageDataset:
    """Open the training split and say what was left out."""
    card = job.catalogue.dataset(job.plan.config.dataset)
    dataset = open_dataset(
        card,
        split=card.train_split,
        image_size=job.plan.model.image_size,
        num_classes=job.plan.model.num_classes,
        options=job.plan.config.section("data"),
        workers=job.workers,
        cache_dir=job.cache / "data",
    )
    for skipped in dataset.skipped[:5]:
        progress.say(f"left out {skipped.path}: {skipped.reason}")
    if dataset.skipped:
        listed = job.out / "left-out.txt"
        write_atomic(listed, "".join(f"{skipped.path}: {skipped.reason}\n" for skipped in dataset.skipped))
        progress.say(f"left out {len(dataset.skipped)} unreadable images in all; see {listed}")
    return dataset


def build_method(job: Job, backbone: Backbone, device: torch.device) -> Method:
    """Build the method from its card and the resolved options.

    Raises:
        UserError: the method's class lacks what the interface needs, or its options contradict each other.
    """
    name = job.plan.config.method
    assert name is not None
    target = interfaces.load_method(job.catalogue, name)

    shared: dict[tuple[object, ...], Placed] = {}

    def reward(spec: str) -> Reward:
        return build_reward(
            spec,
            job.catalogue,
            device,
            class_names=lambda: class_names(job.catalogue.dataset(job.plan.config.dataset)),
            image_size=job.plan.model.image_size,
            shared=shared,
        )

    config = target.Config(**job.plan.config.section("method"))
    method: Method = target(config, backbone=backbone, reward=reward, seed=job.plan.config.seed)
    return method


def trained_module(backbone: Backbone, updates: Updates) -> nn.Module:
    """Return what a method trains; afterwards gradients reach that and nothing else of the backbone."""
    decoder = backbone.tokenizer.trainable_decoder()
    backbone.policy.requires_grad_(updates == "policy")
    decoder.requires_grad_(updates == "decoder")
    return backbone.policy if updates == "policy" else decoder


def role_of(plan: Plan) -> str:
    """Which file a method changes."""
    assert plan.method is not None
    return "policy" if plan.method.updates == "policy" else "tokenizer"


def load_export(run: Path, backbone: Backbone) -> None:
    """Put a run's exported weights into a backbone.

    Raises:
        UserError: the folder has no export, or it is of another model.
    """
    if not run.is_dir():
        raise UserError(f"{run} is not a run folder", fix="name the folder of a run that has trained")
    files = sorted((run / "export").glob("*.safetensors"))
    if not files:
        raise UserError(f"{run} has no exported weights", fix="name the folder of a run that has trained")
    for file in files:
        module: Any = backbone.policy if file.stem == "policy" else backbone.tokenizer
        load_strict(module, read_state_dict(file), name=str(file))
