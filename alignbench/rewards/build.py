"""Build rewards from specifications: options, placement, texts, batches, masks, transforms and direction.

What comes out is an `api.Reward` whose scores are such that *larger is better*, whatever the card's
direction; if the card is a distance, it is an `api.Distance` too, whose distances are such that smaller is
better.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from alignbench import api
from alignbench.errors import UserError, failure_of
from alignbench.registry import interfaces
from alignbench.registry.lookup import Registry, import_target
from alignbench.registry.reward_spec import PLACEMENTS, Resolved, is_remote, require_packages, resolve
from alignbench.registry.schema import Scalar
from alignbench.rewards import remote, requests, transforms
from alignbench.rewards.sets.built import BuiltSet, RealImages

CPU = torch.device("cpu")


@runtime_checkable
class Movable(Protocol):
    """A reward with weights; `to` moves all of them, in place."""

    def to(self, device: torch.device) -> object: ...


@dataclass(frozen=True)
class Placed:
    """A reward object and the device it computes on."""

    raw: api.Reward
    device: torch.device | None
    """None: elsewhere, over the network."""
    offloaded: bool = False
    """The weights rest in main memory between calls."""

    @contextlib.contextmanager
    def ready(self) -> Iterator[api.Reward]:
        """Give the reward object with its weights where they are needed."""
        if not (self.offloaded and isinstance(self.raw, Movable)):
            yield self.raw
            return
        assert self.device is not None
        self.raw.to(self.device)
        try:
            yield self.raw
        finally:
            self.raw.to(CPU)

    def look(self, images: Tensor) -> Tensor | None:
        """Features of a reward of scope `set`; None: a server does not answer."""
        with self.ready() as raw:
            there = images if self.device is None else images.to(self.device)
            found: Tensor | None = raw.features(there)  # type: ignore[attr-defined]
        return found


def devices(placement: str, device: torch.device) -> tuple[torch.device, torch.device, bool]:
    """Return (device to build on, device to compute on, whether the weights are only offloaded to it).

    Raises:
        UserError: not a placement, or a device this machine lacks.
    """
    if placement == "same":
        return device, device, False
    if placement == "offload":
        return CPU, device, True
    try:
        own = torch.device(placement)
        torch.empty(1, device=own)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"placement {placement!r} cannot be used: {str(error).splitlines()[0]}",
            fix=f"choose {PLACEMENTS}",
        ) from error
    return own, own, False


PLACING = ("placement", "timeout", "retries")
"""Common options that `build_placed` reads."""


def build(
    text: str,
    registry: Registry,
    device: torch.device,
    *,
    class_names: Callable[[], Sequence[str]] = tuple,
    image_size: int,
    assets: Mapping[str, Scalar] | None = None,
    shared: MutableMapping[tuple[object, ...], Placed] | None = None,
    real: RealImages | None = None,
) -> api.Reward:
    """Build a reward.

    Args:
        text: specification, `name(option=value, …)|transform(number, …)|…`.
        device: of the images, and of the reward unless `placement` says otherwise.
        class_names: gives the name of each class; called only for rewards that read a text. Without names
            such rewards need requests that bring their own texts.
        assets: {asset: path} as the user names them; see `reward_spec.resolve`.
        shared: what was placed before. Specifications that differ in nothing but transforms, batch and texts
            share one copy of their network.
        real: images that a reward of scope `set` compares with; None: there are none.

    Returns:
        A reward; a card of scope `distance` that is not remote gives an `api.Distance` too, and one of scope
        `set` a `methods.sets.set_rewards.SetReward`, which refuses to score images one by one.

    Raises:
        UserError: unknown reward, option or transform, a missing package or weight file, images too small, or
            a server that does not answer.
    """
    resolved = resolve(text, registry, assets)
    transforms.check(resolved.spec.transforms)
    if resolved.card.min_size > image_size:
        raise UserError(
            f"reward {resolved.name!r} needs images of at least {resolved.card.min_size} px; "
            f"these have {image_size} px"
        )
    names = tuple(class_names()) if "text" in resolved.card.needs else ()
    shared = {} if shared is None else shared
    key = (resolved.name, *resolved.options.values(), *map(resolved.common.get, PLACING))
    if key not in shared:
        shared[key] = build_placed(resolved, device)
    placed = shared[key]
    if resolved.card.scope == "set":
        raw = build_raw(resolved, device) if placed.device is None else placed.raw
        return BuiltSet(resolved, raw, placed.look).prepared(image_size, real)
    is_distance = resolved.card.scope == "distance" and placed.device is not None
    return (BuiltDistance if is_distance else BuiltReward)(resolved, placed, names)


def build_placed(resolved: Resolved, device: torch.device) -> Placed:
    """Make the object that gives raw scores, where its placement says."""
    where = str(resolved.common["placement"])
    if is_remote(where):
        client = remote.connect(
            where,
            resolved.name,
            resolved.options,
            timeout=float(resolved.common["timeout"]),
            retries=int(resolved.common["retries"]),
        )
        return Placed(client, None)
    build_on, compute_on, offloaded = devices(where, device)
    return Placed(build_raw(resolved, build_on), compute_on, offloaded)


def build_raw(resolved: Resolved, device: torch.device) -> Any:
    """Call the card's target.

    Raises:
        UserError: a missing package, code that does not import or has no `score`, or whatever the reward
            misses.
    """
    require_packages(resolved.name, resolved.card)
    what = f"reward {resolved.name!r}"
    try:
        target = import_target(resolved.card.target)
    except UserError as error:
        raise UserError(f"{what}: {error.what}") from error
    with failure_of(what):
        raw = target(device, **resolved.options)
    members = interfaces.members("rewards", resolved.card)
    interfaces.require(f"{what} ({resolved.card.target})", raw, members)
    return raw


@dataclass(frozen=True)
class BuiltReward:
    """A reward as methods and evaluators use it; see `build`."""

    resolved: Resolved
    placed: Placed
    class_names: tuple[str, ...]

    @property
    def differentiable(self) -> bool:
        """Whether scores carry gradients with respect to the images; offloaded weights give none."""
        return (
            self.resolved.card.differentiable
            and transforms.smooth(self.resolved.spec.transforms)
            and self.placed.device is not None
            and not self.placed.offloaded
        )

    def score(self, request: api.ScoreRequest) -> api.Scores:
        """Score a request of any size: transformed, larger is better, NaN where not valid.

        Raises:
            ValueError: images of another form or range.
            RunFailed: the reward fails, or returns something else than a score for each image.
            UserError: the request lacks what the reward needs.
        """
        requests.check(self.resolved.name, request)
        request = self._complete(request)
        size = int(self.resolved.common["batch"])
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.differentiable):
            parts = [self._score_batch(part) for part in requests.split(request, size)]
        if not parts:
            return requests.all_valid(request.images.new_empty(0))
        values = torch.cat([part.values for part in parts])
        valid = torch.cat([part.valid for part in parts]) & values.detach().isfinite()
        values = transforms.apply(self.resolved.spec.transforms, values)
        values = -values if self.resolved.card.direction == "lower" else values
        return api.Scores(values.masked_fill(~valid, torch.nan), valid)

    def _score_batch(self, request: api.ScoreRequest) -> api.Scores:
        home = request.images.device
        if self.placed.device is not None:
            request = requests.move(request, self.placed.device)
        if not self.differentiable:
            request = replace(request, images=request.images.detach())
        with failure_of(f"reward {self.resolved.name!r}"), self.placed.ready() as raw:
            scores = raw.score(request)
            requests.check_scores(scores, len(request.images))
        return api.Scores(scores.values.float().to(home), scores.valid.to(home))

    def _complete(self, request: api.ScoreRequest) -> api.ScoreRequest:
        """Check that the request has what the reward needs; write texts from class names if it has none."""
        card, name = self.resolved.card, self.resolved.name
        if card.scope == "distance" and request.reference is None:
            raise UserError(
                f"reward {name!r} compares with the real image behind a sample, and there is none here",
                fix="choose a reward of scope image: alignbench list rewards",
            )
        if "label" in card.needs and request.labels is None:
            raise UserError(f"reward {name!r} needs class labels, and these samples have none")
        if "metadata" in card.needs and not request.metadata.get("prompt"):
            raise UserError(f"reward {name!r} reads entries of a prompt file, and these samples have none")
        if "text" not in card.needs or request.texts:
            return request
        if request.labels is None or not self.class_names:
            lacking = "captions" if request.labels is None else "captions, and their classes no names"
            raise UserError(f"reward {name!r} reads a text, and these samples have no {lacking}")
        prompt = str(self.resolved.common["class_prompt"])
        texts = tuple(prompt.format(self.class_names[label]) for label in request.labels.tolist())
        return replace(request, texts=texts)


class BuiltDistance(BuiltReward):
    """A `BuiltReward` that compares with references and can look at each of them once."""

    def prepare(self, reference: Tensor) -> Any:
        with failure_of(f"reward {self.resolved.name!r}"), self.placed.ready() as raw:
            return raw.prepare(reference.to(self.placed.device))  # type: ignore[attr-defined]

    def distance(self, images: Tensor, prepared: Any, *, repeats: int) -> Tensor:
        """See `api.Distance.distance`; transformed, not batched, and never masked.

        Raises:
            UserError: gradients are asked of a chain or a placement that has none.
            RunFailed: the reward fails, or gives something else than a number for each image.
        """
        if torch.is_grad_enabled() and images.requires_grad and not self.differentiable:
            raise UserError(
                f"reward {self.resolved.text!r} passes no gradient on",
                fix="leave out quantise, levels and placement=offload, or choose a differentiable reward",
            )
        with failure_of(f"reward {self.resolved.name!r}"), self.placed.ready() as raw:
            distance = raw.distance  # type: ignore[attr-defined]
            values = distance(images.to(self.placed.device), prepared, repeats=repeats)
            requests.check_values(values, len(images))
            if not values.detach().isfinite().all():
                broken = "the decoded images hold" if not images.detach().isfinite().all() else "it returned"
                raise ValueError(f"{broken} values that are not numbers")
        values = transforms.apply(self.resolved.spec.transforms, values.to(images.device))
        return values if self.resolved.card.direction == "lower" else -values
