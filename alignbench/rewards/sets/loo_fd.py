"""The Fréchet distance of a step's images, and what each of them does to it (arXiv:2603.23086).

    credit of image i = F(all but i) − F(all)          positive: the images are nearer to real ones with it

F compares a Gaussian of known moments with the moments that the images come to, mixed with a running pair
(M, Q) of earlier steps: a·M + (1 − a)·mean and a·Q + (1 − a)·mean of squares, a the `decay`. All in float64.
`credit` needs nothing of the other images but their number, sum and sum of squares.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from alignbench.errors import UserError
from alignbench.files import atomic_file, cache_root, code_digest, digest_of, make_folder
from alignbench.hub.verify import AssetFile
from alignbench.nets.feature_networks import NETWORKS, FeatureNetwork
from alignbench.rewards.perceptual import require_weights
from alignbench.rewards.sets.built import RealImages
from alignbench.rewards.sets.frechet import (
    Gaussian,
    RawMoments,
    SetMoments,
    diagonal_credit,
    diagonal_distance,
    full_credit,
    full_distance,
)

Covariance = Literal["diagonal", "full", "full-linear"]
Look = Callable[[Tensor], Tensor]
"""[N, 3, H, W] images → [N, D] float64 features."""


class LooFd:
    """A reward of scope `set`; see `methods.sets.set_rewards.SetReward`.

    Args:
        network: one of `feature_networks.NETWORKS`; loaded when it is first used.
        covariance: of which form both Gaussians are; see `full_credit` for `full-linear`.
        decay: share of the running pair, a; 0: every step by itself.
        reference: file with `mu` and `sigma` of real images; empty: those of the training set.
        start: file with `mu` and `sigma` that the running pair starts from; empty: the first step's own.
        weights: file of the network.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        network: str,
        covariance: Covariance,
        decay: float,
        reference: str,
        start: str,
        weights: str,
    ) -> None:
        self.network, self.covariance, self.decay, self.weights = network, covariance, decay, weights
        self._paths = {"reference": reference, "start": start}
        self._device = device
        self._net: FeatureNetwork | None = None
        self._real: Gaussian | None = None
        self._start: dict[str, Tensor] = {}

    def features(self, images: Tensor) -> Tensor:
        """[N, 3, H, W], 0 … 1 → [N, D]; UserError: the weights are missing or do not fit."""
        if self._net is None:
            file = self._file()
            self._net = NETWORKS[self.network].load(file.path if file else None)
            self._net.module.to(self._device)
        return self._net.look(images.clamp(0, 1))

    def to(self, device: torch.device) -> None:
        self._device = device
        if self._net is not None:
            self._net.module.to(device)

    def prepare(self, look: Look, width: int, real: RealImages | None) -> None:
        """Get the moments of real images: a file's, the cache's, or those of a look at all of them.

        Raises:
            UserError: a file that does not fit, or neither a file nor images.
        """
        if self._paths["start"] and self.decay:
            start = self._read("start", width)
            squares = self._products(start.mean[None])[0]
            self._start = {"first": start.mean, "second": start.covariance + squares}
        if self._paths["reference"]:
            self._real = self._read("reference", width)
        elif real is None:
            raise UserError(
                "reward 'loo-fd' needs moments of real images, and there are none here",
                fix="name a file with mu and sigma: loo-fd(reference=PATH.npz), or train on data with images",
            )
        else:
            self._real = self._of_images(look, real)

    def sums(self, features: Tensor) -> dict[str, Tensor]:
        """[N, D] float64 → number, sum, and sum of squares or products."""
        count = features.new_tensor(float(len(features)))
        second = features.T @ features if self.covariance != "diagonal" else features.square().sum(dim=0)
        return {"count": count, "first": features.sum(dim=0), "second": second}

    def value(self, sums: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Tensor:
        """Minus the distance of the whole step, a scalar."""
        step, real = self._step(sums, state)
        return -(diagonal_distance if self.covariance == "diagonal" else full_distance)(real, step.whole)

    def credit(self, features: Tensor, sums: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Tensor:
        """[N, D] float64 features of images in `sums` → [N]; not finite where it is the only one."""
        step, real = self._step(sums, state)
        if self.covariance == "diagonal":
            return diagonal_credit(real, features, step)
        if step.images < 2:
            return features.new_full((len(features),), torch.nan)
        return full_credit(real, features, step, linear=self.covariance == "full-linear")

    def advanced(self, sums: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the running pair after a step."""
        if not self.decay:
            return {}
        return self._step(sums, state)[0].whole._asdict()

    def _step(self, sums: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> tuple[SetMoments, Gaussian]:
        assert self._real is not None, "`prepare` was not called"
        device = sums["first"].device
        total = RawMoments(sums["first"], sums["second"])
        known = {name: part.to(device) for name, part in (state or self._start).items()}
        running = RawMoments(**known) if known and self.decay else None
        if running is None and self.decay:  # the first step: the pair starts from what it comes to
            running = RawMoments(*(part / sums["count"] for part in total))
        return SetMoments(sums["count"], total, running, self.decay), self._real.to(device)

    def _products(self, rows: Tensor) -> Tensor:
        """[N, D] → squares [N, D], or products [N, D, D]."""
        return rows.square() if self.covariance == "diagonal" else rows[:, :, None] * rows[:, None, :]

    # --- moments of real images ---

    def _of_images(self, look: Look, real: RealImages) -> Gaussian:
        file, kind = self._file(), "diagonal" if self.covariance == "diagonal" else "full"
        made_of = {
            "images": real.digest,
            "network": [self.network, file.sha256 if file else ""],
            "kind": kind,
        }
        made_of |= {"code": code_digest(), "torch": torch.__version__}
        path = cache_root() / "moments" / f"{digest_of(made_of)}.npz"
        try:
            return _gaussian(path)
        except Exception:  # not there, or damaged, which the archive's checksums find
            pass
        total: dict[str, Tensor] = {}
        for images in real:
            for name, value in self.sums(look(images).cpu()).items():
                total[name] = total[name] + value if name in total else value
        first, second = total["first"] / total["count"], total["second"] / total["count"]
        found = Gaussian(first, second - self._products(first[None])[0])
        make_folder(path.parent)
        with atomic_file(path) as stream:
            np.savez(stream, mu=found.mean.numpy(), sigma=found.covariance.numpy())
        return found

    def _read(self, option: str, width: int) -> Gaussian:
        """Read a file that the user names, in the form that `covariance` wants."""
        path = Path(self._paths[option]).expanduser()
        where = f"reward 'loo-fd': {option} = {path}"
        try:
            found = _gaussian(path)
        except Exception as error:  # NumPy and zipfile raise a dozen kinds on what is no such file
            raise UserError(
                f"{where} cannot be read: {error}",
                fix="give an .npz file with mu [D] and sigma [D, D] or [D]",
            ) from error
        if found.covariance.dim() == 2 and self.covariance == "diagonal":
            found = Gaussian(found.mean, found.covariance.diagonal().clone())
        shapes = [list(part.shape) for part in found]
        wanted = [[width], [width] if self.covariance == "diagonal" else [width, width]]
        if shapes != wanted:
            raise UserError(
                f"{where} holds mu {shapes[0]} and sigma {shapes[1]}, not {wanted[0]} and {wanted[1]}",
                fix=f"give moments of {self.network}; covariance=diagonal needs variances alone",
            )
        variances = found.covariance if found.covariance.dim() == 1 else found.covariance.diagonal()
        if not all(part.isfinite().all() for part in found) or (variances < 0).any():
            raise UserError(f"{where} holds values that are no moments", fix="make the file again")
        return found

    def _file(self) -> AssetFile | None:
        """Return the network's weights, as they should be; None: they are shipped."""
        asset = NETWORKS[self.network].asset
        return require_weights(asset, self.weights) if asset else None


def _gaussian(path: Path) -> Gaussian:
    with np.load(path, allow_pickle=False) as archive:
        return Gaussian(*(torch.from_numpy(archive[name].astype(np.float64)) for name in ("mu", "sigma")))
