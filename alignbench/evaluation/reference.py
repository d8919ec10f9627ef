"""Reference files of the ADM form: what generated images are compared with, as one `.npz`.

`arr_0` holds some real images, `mu`, `sigma`, `mu_s`, `sigma_s` the Inception moments of all of them. ADM's
own file has both; files with only images or only moments are read too. Files written here carry a few more
arrays, which ADM's evaluator does not look at: the SHA-256 of the network and of all pixels, the size and
number of images, the version.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from alignbench import __version__, randomness
from alignbench.errors import UserError
from alignbench.metrics.moments import Moments
from alignbench.nets.inception import POOL, SPATIAL, Inception
from alignbench.progress import Stage
from alignbench.samples.external import SampleImages, open_archive
from alignbench.samples.npz import Archive, NpzColumn, write_archive

SHAPES = {"mu": (POOL,), "sigma": (POOL, POOL), "mu_s": (SPATIAL,), "sigma_s": (SPATIAL, SPATIAL)}
"""What the moments of this network look like."""
PAIRS = (("mu", "sigma"), ("mu_s", "sigma_s"))
ASYMMETRY = 1e-6
"""Largest difference between a covariance and its transpose, relative to its largest entry."""


# --- reading --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReferenceFile:
    """An opened reference file; the images are not read yet."""

    path: Path
    statistics: dict[str, np.ndarray] = field(default_factory=dict)
    """float64 mu [2048], sigma [2048, 2048], mu_s [2023], sigma_s [2023, 2023], as far as they are there."""
    images: SampleImages | None = None
    """The images of `arr_0`, an `api.ImageSet`; None: moments only."""


def open_reference(
    path: Path, *, image_size: int, networks: Mapping[str, str] | None = None
) -> ReferenceFile:
    """Open a reference file and check that it fits; pixels are read only when they are asked for.

    Args:
        networks: {asset: SHA-256} of the networks in use; a file that names its own must name one of them.

    Raises:
        UserError: no such file, images of another size or form, or moments of another network or none.
    """
    archive = Archive(path)
    names = archive.headers.keys()
    if "arr_0" not in names and not {"mu", "sigma"} <= names:
        raise UserError(
            f"{path} is no reference: it has neither images (arr_0) nor moments (mu, sigma), "
            f"but {', '.join(names) or 'nothing'}"
        )
    _check_origin(archive, image_size, networks or {})
    statistics: dict[str, np.ndarray] = {}
    for pair in PAIRS:
        present = [name for name in pair if name in names]
        if len(present) == 1:
            (absent,) = set(pair) - set(present)
            raise UserError(f"{path}: {present[0]} without {absent}")
        statistics |= {name: _moment(archive, name) for name in present}
    images = open_archive(archive, image_size=image_size) if "arr_0" in names else None
    return ReferenceFile(path, statistics, images)


def _check_origin(archive: Archive, image_size: int, networks: Mapping[str, str]) -> None:
    """Compare what a file written here says of itself."""
    if "network" in archive.headers and networks:
        network = str(archive.array("network"))
        if network not in networks.values():
            used = ", ".join(f"{name} {digest[:12]}…" for name, digest in networks.items())
            raise UserError(
                f"{archive.path} was made with another network: its weights had SHA-256 {network[:12]}…, "
                f"in use is {used}",
                fix="make it again: alignbench reference",
            )
    if "image_size" in archive.headers:
        side = int(archive.array("image_size"))
        if side != image_size:
            raise UserError(
                f"{archive.path} was made of {side} px images, the protocol scores {image_size} px",
                fix=f"make it again: alignbench reference --image-size {image_size}",
            )


def _moment(archive: Archive, name: str) -> np.ndarray:
    header = archive.headers[name]
    if header.shape != SHAPES[name] or header.dtype.kind != "f":
        shape, wanted = ("×".join(map(str, sizes)) for sizes in (header.shape, SHAPES[name]))
        raise UserError(
            f"{archive.path}: {name} is {header.dtype} {shape}, not floating-point {wanted}: "
            "statistics of another network",
            fix="use a file made with the network of ADM's evaluator",
        )
    values = archive.array(name).astype(np.float64)
    if not np.isfinite(values).all():
        raise UserError(f"{archive.path}: {name} holds numbers that are not finite")
    if values.ndim == 2:
        scale = float(np.abs(values).max())
        if float(np.abs(values - values.T).max()) > ASYMMETRY * scale:
            raise UserError(f"{archive.path}: {name} is not symmetric, so it is no covariance")
        if float(np.diagonal(values).min()) < 0:
            raise UserError(f"{archive.path}: {name} has negative variances")
    return values


# --- writing --------------------------------------------------------------------------------------


def write_reference(
    source: SampleImages,
    path: Path,
    *,
    net: Inception,
    network: str,
    images: int,
    seed: int,
    batch: int,
    stage: Stage | None = None,
) -> None:
    """Write a reference file: moments of all images, and some of the images themselves.

    Args:
        source: real images, all of one size.
        path: `.npz` file to write; whole or absent.
        net: the feature network.
        network: SHA-256 of its weights.
        images: how many to keep in `arr_0`, drawn without replacement; 0 keeps none.
        seed: of the draw.
        batch: images the network sees at once.
        stage: told of images that are done.

    Raises:
        UserError: fewer than two images, or images that cannot be read.
        OSError: the disk is full or the folder is not writable.
    """
    if len(source) < 2:
        raise UserError(f"{source.title}: {len(source)} image has no covariance", fix="give more images")
    kept = np.sort(randomness.permutation(seed, "reference-images", 0, len(source))[:images])
    moments: dict[str, Moments] = {}
    pixels = hashlib.sha256()
    size = source.take(range(1)).images.shape[-1]

    def pieces() -> Iterator[np.ndarray]:
        for number, ids in enumerate(source.shards()):
            loaded = source.load(number)
            rows = net.rows(loaded.images, batch=batch)
            for name in ("pool", "spatial"):
                new = Moments.of(rows[name].astype(np.float64))
                moments[name] = moments[name].merge(new) if name in moments else new
            pixels.update(loaded.images.contiguous().numpy().tobytes())
            inside = kept[(kept >= ids.start) & (kept < ids.stop)] - ids.start
            yield loaded.images[inside].permute(0, 2, 3, 1).numpy()
            if stage is not None:
                stage.advance(len(ids))

    shown = NpzColumn((len(kept), size, size, 3), np.dtype(np.uint8), pieces())

    def arrays() -> dict[str, np.ndarray]:
        pool, spatial = moments["pool"], moments["spatial"]
        values = (pool.mean, pool.covariance, spatial.mean, spatial.covariance)
        about = {"network": network, "image_size": size, "count": len(source), "alignbench": __version__}
        about["source"] = f"sha256:{pixels.hexdigest()}"
        named = {name: np.array(value) for name, value in about.items()}
        return {**dict(zip(SHAPES, values, strict=True)), **named}

    write_archive(path, {"arr_0": shown}, arrays)
