"""What a tokenizer makes of real images: encoded, decoded, and shown beside their originals.

Image `i` of the set is image `i` of the data set, in its order; no random number is involved.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from alignbench.api import Backbone, ImageBatch
from alignbench.data.dataset import ImageDataset
from alignbench.errors import UserError, out_of_memory_as, smaller_batch
from alignbench.files import digest_of
from alignbench.registry.protocol import ProtocolCard, protocol_digest
from alignbench.samples.pixels import from_uint8, to_uint8
from alignbench.samples.real import DatasetImages


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
        workers: int = 0,
    ) -> None:
        """Check that data set, tokenizer and protocol fit; raises UserError: number or size of the images."""
        self._originals = DatasetImages(dataset, batch=protocol.batch, workers=workers)
        self._tokenizer, self._protocol, self._device = backbone.tokenizer, protocol, device
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
            rebuilt = torch.cat(list(self._rebuilt(originals.images)))
        return replace(originals, images=rebuilt, originals=originals.images)

    @torch.no_grad()
    def _rebuilt(self, originals: Tensor) -> Iterator[Tensor]:
        """Yield uint8 pieces on the CPU; every forward sees a whole batch, the last one padded."""
        batch = self._protocol.batch
        for piece in originals.split(batch):
            padding = piece[-1:].expand(batch - len(piece), -1, -1, -1)
            images = from_uint8(torch.cat([piece, padding]).to(self._device))
            decoded = self._tokenizer.decode(self._tokenizer.encode(images), (self._side, self._side))
            yield to_uint8(decoded, self._protocol.rounding)[: len(piece)].cpu()
