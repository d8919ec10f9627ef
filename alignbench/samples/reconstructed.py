"""What a tokenizer makes of real images: encoded, decoded, and shown beside their originals.

Image `i` of the set is image `i` of the data set, in its order; no random number is involved.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from alignbench.api import Backbone, ImageBatch
from alignbench.data.dataset import ImageDataset, ordered_map
from alignbench.errors import UserError, out_of_memory_as, smaller_batch
from alignbench.files import digest_of
from alignbench.registry.protocol import ProtocolCard, protocol_digest
from alignbench.samples.pixels import from_uint8, to_uint8

SHARD = 256
"""Images per shard at least; a whole number of batches."""


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
        """Check that data set, tokenizer and protocol fit each other; nothing is computed yet.

        Args:
            dataset: the originals, opened at the protocol's image size.
            backbone: its tokenizer is used, as it is, on `device`.
            protocol: of task `reconstruction`; gives size, batch and rounding.
            device: where to work.
            weights_digest: identity of the backbone's weights.
            workers: threads that decode image files; 0 decodes in the calling thread.

        Raises:
            UserError: the number of images is not the protocol's, or the tokenizer cannot take its size.
        """
        self._dataset, self._backbone, self._protocol = dataset, backbone, protocol
        self._device, self._workers = device, workers
        tokenizer = backbone.tokenizer
        self._side, rest = divmod(protocol.image_size, tokenizer.downsample)
        if rest:
            raise UserError(
                f"{protocol.title} works at {protocol.image_size} px; the tokenizer needs a multiple of "
                f"{tokenizer.downsample}"
            )
        if len(dataset) != protocol.samples:
            left_out = f", {len(dataset.skipped)} more are unreadable" if dataset.skipped else ""
            raise UserError(
                f"{protocol.title} reconstructs {protocol.samples:,} images; the data set has "
                f"{len(dataset):,}{left_out}",
                fix="give the whole split; rows of another number of images could not be compared",
            )
        self.identity = digest_of(
            {
                "reconstruction": 1,
                "data": dataset.digest,
                "weights": weights_digest,
                "protocol": protocol_digest(protocol),
                "device": device.type,
            }
        )

    def __len__(self) -> int:
        return len(self._dataset)

    def shards(self) -> Sequence[range]:
        """Return the image ids of every shard."""
        size = -(-SHARD // self._protocol.batch) * self._protocol.batch
        return [range(start, min(start + size, len(self))) for start in range(0, len(self), size)]

    def load(self, number: int) -> ImageBatch:
        """Encode and decode one shard.

        Raises:
            ValueError: the data set was not opened at the protocol's image size.
            RunFailed: out of memory.
        """
        ids, batch = self.shards()[number], self._protocol.batch
        originals = self._originals(ids)
        with out_of_memory_as(
            f"out of memory while reconstructing {batch} images together", smaller_batch(batch)
        ):
            rebuilt = torch.cat(list(self._rebuilt(originals)))
        return ImageBatch(
            ids=ids,
            images=rebuilt,
            labels=torch.from_numpy(np.asarray(self._dataset.labels)[ids.start : ids.stop].astype(np.int64)),
            originals=originals,
        )

    def _originals(self, ids: range) -> Tensor:
        pixels = [image for image, _ in ordered_map(self._dataset.load, ids, workers=self._workers)]
        originals = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
        side = self._protocol.image_size
        if originals.shape[1:] != (3, side, side):
            raise ValueError(f"images are {list(originals.shape[1:])}, not [3, {side}, {side}]")
        return originals

    @torch.no_grad()
    def _rebuilt(self, originals: Tensor) -> Iterator[Tensor]:
        """Yield uint8 pieces on the CPU; every forward sees a whole batch, the last one padded."""
        tokenizer, batch = self._backbone.tokenizer, self._protocol.batch
        for piece in originals.split(batch):
            padding = piece[-1:].expand(batch - len(piece), -1, -1, -1)
            images = from_uint8(torch.cat([piece, padding]).to(self._device))
            decoded = tokenizer.decode(tokenizer.encode(images), (self._side, self._side))
            yield to_uint8(decoded, self._protocol.rounding)[: len(piece)].cpu()
