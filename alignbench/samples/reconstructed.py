"""What a tokenizer makes of real images: encoded, decoded, and shown beside their originals.

Image `i` of the set is image `i` of the data set, in its order; no random number is involved, but where an
evaluator asks for perturbed reconstructions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from alignbench import randomness
from alignbench.api import Backbone, ImageBatch
from alignbench.data.dataset import ImageDataset
from alignbench.errors import UserError, out_of_memory_as, smaller_batch
from alignbench.files import digest_of
from alignbench.registry.protocol import ProtocolCard, protocol_digest
from alignbench.samples.pixels import from_uint8, to_uint8
from alignbench.samples.real import DatasetImages

BLOCK = 512
"""Codes whose distances to all others are in memory at a time."""


class ReconstructedImages:
    """Reconstructions of a data set with their originals; an `api.ImageSet`.

    The tokenizer works at the protocol's image size, whatever size its model generates at: it is a
    convolutional network, and its grid is the image's side divided by `downsample`.

    Deviation: the released program compares with the originals as floats; ours are the 8-bit images that the
    data set gives, which is the same wherever nothing is resized after loading.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        backbone: Backbone,
        protocol: ProtocolCard,
        device: torch.device,
        *,
        weights_digest: str,
        seed: int = 0,
        workers: int = 0,
    ) -> None:
        """Check that data set, tokenizer and protocol fit; raises UserError: number or size of the images.

        Args:
            seed: of perturbations.
        """
        self._originals = DatasetImages(dataset, batch=protocol.batch, workers=workers)
        self._tokenizer, self._protocol, self._device = backbone.tokenizer, protocol, device
        self._seed, self._others = seed, torch.empty(0, 0, dtype=torch.int64)
        self._side, rest = divmod(protocol.image_size, self._tokenizer.downsample)
        if rest:
            raise UserError(
                f"{protocol.title} works at {protocol.image_size} px; the tokenizer needs a multiple of "
                f"{self._tokenizer.downsample}"
            )
        if len(dataset) != protocol.samples:
            left_out = f", {len(dataset.skipped)} more are unreadable" if dataset.skipped else ""
            raise UserError(
                f"{protocol.title} reconstructs {protocol.samples:,} images; the data set has "
                f"{len(dataset):,}{left_out}",
                fix="give the whole split; rows of another number of images could not be compared",
            )
        made_of = {"data": dataset.digest, "weights": weights_digest, "protocol": protocol_digest(protocol)}
        made_of |= {"seed": str(seed)} if seed else {}
        self.identity = digest_of({"reconstruction": 1, **made_of, "device": device.type})

    def __len__(self) -> int:
        return len(self._originals)

    def shards(self) -> Sequence[range]:
        return self._originals.shards()

    def load(self, number: int) -> ImageBatch:
        """Encode and decode one shard; raises ValueError: another image size; RunFailed: out of memory."""
        originals = self._originals.load(number)
        shape, side, batch = originals.images.shape[1:], self._protocol.image_size, self._protocol.batch
        if shape != (3, side, side):
            raise ValueError(f"images are {list(shape)}, not [3, {side}, {side}]")
        with out_of_memory_as(
            f"out of memory while reconstructing {batch} images together", smaller_batch(batch)
        ):
            tokens = torch.cat(list(self._encoded(originals.images)))
            rebuilt = self._decoded(tokens)

        def perturbed(share: float, near: float) -> Tensor:
            return self._decoded(self._perturbed(tokens, originals.ids, share, near))

        return replace(originals, images=rebuilt, originals=originals.images, perturbed=perturbed)

    def _perturbed(self, tokens: Tensor, ids: Sequence[int], share: float, near: float) -> Tensor:
        """Replace tokens [n, T], each with probability `share`, by one of the nearest other codes.

        Their number is the part `near` of all codes, rounded, and 1 at least. An image's numbers depend on
        its id, the two arguments and the seed alone.
        """
        codes = self._tokenizer.num_codes
        count = min(max(1, int(near * codes + 0.5)), codes - 1)
        if self._others.shape[1] < count:  # once for all that pFID asks for
            self._others = nearest_codes(self._tokenizer.codebook(), max(count, codes // 32))
        purpose = f"perturbed-codes/{share:g}/{near:g}"
        uniforms = randomness.uniforms(self._seed, purpose, 0, ids, (2, tokens.shape[1]))
        moved, which = torch.from_numpy(uniforms).unbind(1)
        before = tokens.cpu()
        after = self._others[before, (which * count).long()]
        return torch.where(moved < share, after, before).to(tokens.device)

    @torch.no_grad()
    def _encoded(self, originals: Tensor) -> Iterator[Tensor]:
        """Yield tokens [b, T]; every forward sees a whole batch, the last one padded."""
        batch = self._protocol.batch
        for piece in originals.split(batch):
            images = from_uint8(_padded(piece, batch).to(self._device))
            yield self._tokenizer.encode(images)[: len(piece)]

    @torch.no_grad()
    def _decoded(self, tokens: Tensor) -> Tensor:
        """Return uint8 images on the CPU, decoded in whole batches too."""
        batch, grid, pieces = self._protocol.batch, (self._side, self._side), []
        for piece in tokens.split(batch):
            decoded = self._tokenizer.decode(_padded(piece, batch), grid)
            pieces.append(to_uint8(decoded, self._protocol.rounding)[: len(piece)].cpu())
        return torch.cat(pieces)


def _padded(rows: Tensor, count: int) -> Tensor:
    return torch.cat([rows, rows[-1:].expand(count - len(rows), *rows.shape[1:])])


def nearest_codes(codebook: Tensor, count: int) -> Tensor:
    """Return the `count` nearest other codes of each code, nearest first: [K, D] → [K, count] int64, CPU.

    By squared distance in float64; of equally near ones the lower number first. Minutes for 16,384 codes.
    """
    rows, found = codebook.detach().cpu().double(), []
    for start in range(0, len(rows), BLOCK):
        part = rows[start : start + BLOCK]
        distances = torch.cdist(part, rows, compute_mode="donot_use_mm_for_euclid_dist")
        own = torch.arange(len(part))
        distances[own, own + start] = torch.inf
        found.append(distances.argsort(dim=1, stable=True)[:, :count].clone())
    return torch.cat(found)
