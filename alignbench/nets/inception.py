"""The Inception network of FID: torch-fidelity's port of the TensorFlow graph that ADM's evaluator runs.

Weights come from a file that is given; nothing is downloaded here. The port resizes to 299 px itself, as
TensorFlow 1 did (bilinear, corners not aligned, no half-pixel shift, no antialiasing), so images go in at the
size they are scored at.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from alignbench.errors import UserError
from alignbench.nets.precision import full_precision

NAME = "inception-v3-compat"
POOL = 2048
"""Width of the last pooling layer: features of FID, KID, precision and recall."""
CLASSES = 1008
SPATIAL_CHANNELS = 7
SPATIAL_SIDE = 17
SPATIAL = SPATIAL_CHANNELS * SPATIAL_SIDE * SPATIAL_SIDE
"""2,023 features of sFID."""


@dataclass(frozen=True)
class Features:
    """What the network says of n images; all float32, on the network's device."""

    pool: Tensor
    """[n, 2048], never negative."""
    logits: Tensor
    """[n, 1008], without the bias of the last layer, as ADM takes them."""
    spatial: Tensor
    """[n, 2023]: 7 channels of 17×17 after the first convolution of block 6d, channels last."""


class Inception:
    """The frozen network with all that ADM's metrics look at, from one pass."""

    def __init__(self, net: nn.Module, device: torch.device) -> None:
        self._net = net.to(device)
        self._device = device
        self._spatial: list[Tensor] = []
        # The graph's tensor is called mixed_6/conv, but it comes after batch normalisation and ReLU.
        net.get_submodule("Mixed_6d.branch1x1").register_forward_hook(
            lambda module, inputs, output: self._spatial.append(output[:, :SPATIAL_CHANNELS])
        )

    def to(self, device: torch.device) -> None:
        self._net.to(device)
        self._device = device

    @torch.no_grad()
    def features(self, images: Tensor) -> Features:
        """Look at images.

        Args:
            images: [n, 3, H, W] uint8 RGB, any device.
        """
        self._spatial.clear()
        with full_precision():
            pool, logits = self._net(images.to(self._device))
        (spatial,) = self._spatial
        # Channels last, as TensorFlow lays them out; channels first would give another, meaningless sFID.
        return Features(pool, logits, spatial.permute(0, 2, 3, 1).flatten(start_dim=1).contiguous())

    def rows(self, images: Tensor, *, batch: int) -> dict[str, np.ndarray]:
        """Return {pool, logits, spatial} of images as float32 arrays, `batch` at a time."""
        pieces = [self.features(part) for part in images.split(batch)]
        columns = {name: [getattr(piece, name) for piece in pieces] for name in ("pool", "logits", "spatial")}
        return {name: torch.cat(parts).cpu().numpy() for name, parts in columns.items()}


def load(path: Path, device: torch.device) -> Inception:
    """Load the network from a state dict in PyTorch's format.

    Raises:
        UserError: the file is no such state dict, with what does not fit.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except Exception as error:  # unpicklers raise nearly anything on what is no such file
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise _refusal(path, reason) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise _refusal(path, "it holds something else than tensors by name")
    net = untrained("2048", "logits_unbiased")
    wanted = {name: value.shape for name, value in net.state_dict().items()}
    missing, strange = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if missing or strange:
        first = f"{missing[0]} is missing" if missing else f"{strange[0]} is not part of it"
        raise _refusal(path, f"{first} ({len(missing)} missing, {len(strange)} unknown)")
    for name, shape in wanted.items():
        if state[name].shape != shape:
            raise _refusal(path, f"{name} is {list(state[name].shape)} instead of {list(shape)}")
        if not state[name].isfinite().all():
            raise _refusal(path, f"{name} is not finite")
    nn.Module.load_state_dict(net, state)
    return Inception(net, device)


def untrained(*features: str) -> nn.Module:
    """Build torch-fidelity's network with whatever the initialisation gives, frozen and in eval mode.

    Its constructor insists on a file and unpickles anything in it: it is given an empty one.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3  # heavy

    class Untrained(FeatureExtractorInceptionV3):  # type: ignore[misc]
        def load_state_dict(self, *arguments: object, **options: object) -> None:
            return None

    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    net: nn.Module = Untrained(NAME, list(features), feature_extractor_weights_path=empty)
    return net


def _refusal(path: Path, reason: str) -> UserError:
    return UserError(
        f"{path} holds no weights of the FID Inception network: {reason}",
        fix="alignbench fetch inception-2015-12-05",
    )
