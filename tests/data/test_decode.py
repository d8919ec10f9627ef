"""Crops against pictures made by the official code; what each form of pixels becomes; the fixed subset."""

from __future__ import annotations

import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from alignbench.data.decode import (
    CLEAR,
    TURNED,
    UnreadableImage,
    center_crop_adm,
    decode_cropped,
    decode_exact,
    random_crop_adm,
)
from alignbench.data.numbered import choose
from alignbench.data.walk import natural

GOLDEN = Path(__file__).parents[1] / "golden" / "images" / "adm_crops.safetensors"
NOISE = np.random.default_rng(3).integers(0, 256, (10, 12, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "png", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_crops_equal_the_official_ones() -> None:
    golden = load_file(GOLDEN)
    for number, size in ((0, 32), (1, 48), (2, 32), (3, 30)):
        cropped = center_crop_adm(Image.fromarray(golden[f"crop{number}_in"]), size)
        np.testing.assert_array_equal(np.asarray(cropped), golden[f"crop{number}_out"])
    cropped = random_crop_adm(Image.fromarray(golden["crop0_in"]), 32, random.Random(123))
    np.testing.assert_array_equal(np.asarray(cropped), golden["random_crop0_seed123_size32"])


def test_an_image_of_the_right_size_is_left_alone_and_an_odd_margin_cut_at_the_end() -> None:
    square = NOISE[:10, :10]
    np.testing.assert_array_equal(np.asarray(center_crop_adm(Image.fromarray(square), 10)), square)
    pixels = np.arange(4 * 7, dtype=np.uint8).reshape(4, 7)
    np.testing.assert_array_equal(np.asarray(center_crop_adm(Image.fromarray(pixels), 4)), pixels[:, 1:5])


def test_pixel_forms_become_rgb_as_pillow_converts_them() -> None:
    for mode in ("1", "L", "LA", "P", "RGBA", "CMYK"):
        image = Image.fromarray(NOISE).convert(mode)
        if mode == "P":
            image.info["transparency"] = bytes(range(256))
        data = encoded(image, "jpeg" if mode == "CMYK" else "png")
        with Image.open(io.BytesIO(data)) as stored:
            assert stored.mode == mode
            stored.info.pop("transparency", None)
            expected = np.asarray(center_crop_adm(stored.convert("RGB"), 8))
        np.testing.assert_array_equal(decode_cropped(data, 8), expected)


def test_transparency_is_dropped_and_orientation_ignored() -> None:
    clear = Image.fromarray(np.full((8, 8, 4), (200, 100, 50, 0), dtype=np.uint8))
    assert (decode_cropped(encoded(clear), 8) == (200, 100, 50)).all()
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees to show"
    turned = encoded(Image.fromarray(NOISE[:8, :8]), exif=exif)
    ignored: list[str] = []
    np.testing.assert_array_equal(decode_cropped(turned, 8, ignored), NOISE[:8, :8])
    assert ignored == [TURNED]
    exif[0x0112] = 1
    for data in (encoded(Image.fromarray(NOISE).convert("RGBA")), encoded(Image.fromarray(NOISE), exif=exif)):
        decode_cropped(data, 8, ignored := [])
        assert ignored == [], "opaque, and as it is"
    for mode in ("LA", "P", "RGBA"):
        decode_cropped(encoded(clear.convert(mode)), 8, ignored := [])
        assert ignored == [CLEAR]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_has_no_8_bit_form_is_refused_by_name() -> None:
    with pytest.raises(OSError, match="cannot identify"):  # whatever the file calls itself
        decode_cropped(encoded(Image.fromarray(NOISE), "gif"), 8)
    with pytest.raises(UnreadableImage, match="I;16 pixels"):
        decode_cropped(encoded(Image.fromarray(np.full((8, 8), 40000, dtype=np.uint16))), 8)
    with pytest.raises(UnreadableImage, match="10000×9000 is more than 89478485 pixels"):
        decode_cropped(encoded(Image.new("1", (10000, 9000))), 8)


def test_narrow_grey_with_a_transparent_value_is_not_taken_for_opaque() -> None:
    """Pillow widens 4-bit grey to 8 bits, but not the value that the file calls transparent."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 8, 8, 4, 0, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\x00" + bytes([0x5A] * 4) for _ in range(8)))
    parts = [chunk(b"IHDR", header), chunk(b"tRNS", b"\x00\x0a"), chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    with pytest.raises(UnreadableImage, match="transparent pixels in less than 8 bits"):
        decode_exact(b"\x89PNG\r\n\x1a\n" + b"".join(parts), 8)
    opaque = decode_exact(b"\x89PNG\r\n\x1a\n" + b"".join(parts[:1] + parts[2:]), 8)
    assert opaque[0, :2, 0].tolist() == [5 * 17, 10 * 17]


def test_subset_is_fixed_nested_and_in_order() -> None:
    names = [f"{number:03}" for number in range(100)]
    kept = choose(names, limit=30, seed=0)
    assert len(kept) == 30 and kept == sorted(kept)
    assert kept[:8] == [3, 6, 8, 9, 13, 16, 24, 36]  # must never change: recorded runs rest on it
    assert set(choose(names, limit=10, seed=0)) < set(kept)
    assert choose(names, limit=30, seed=1) != kept
    assert choose(names, limit=0, seed=0) == choose(names, limit=200, seed=0) == list(range(100))
    shuffled = names[::-1]
    assert {shuffled[at] for at in choose(shuffled, limit=30, seed=0)} == {names[at] for at in kept}


def test_natural_order_is_total() -> None:
    names = ["a", "a1", "a01", "1", "01", "10", "2", "", "a1b2", "a1b10", "é", "٣"]
    assert sorted(names, key=natural) == sorted(reversed(names), key=natural)
