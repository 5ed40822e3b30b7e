"""Pictures: decoding, shrinking, shards and perceptual hashes."""

import io
import struct
import zlib
from pathlib import Path

import stages.filter
from landmarks import images
from landmarks.images import Picture, Unfit

import numpy as np
import pytest
from conftest import drawing, jpeg, pictures
from PIL import Image
from PIL.PngImagePlugin import PngInfo

SIDE = 96


def sixteen_bit() -> Image.Image:
    return Image.fromarray(np.linspace(0, 65535, SIDE * SIDE).reshape(SIDE, SIDE).astype(np.uint16))


def empty_png(width: int, height: int) -> bytes:
    """A PNG with this size in its header and no pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    data = b"IDAT" + zlib.compress(b"\0")
    chunk += struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    return b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IEND\xaeB`\x82"


@pytest.mark.parametrize(
    ("image", "file_format"),
    [
        (drawing(), "JPEG"),
        (drawing(), "PNG"),
        (drawing(), "WEBP"),
        (drawing().convert("P", palette=Image.Palette.ADAPTIVE), "PNG"),
        (drawing().convert("P", palette=Image.Palette.ADAPTIVE), "GIF"),
        (drawing().convert("CMYK"), "JPEG"),
    ],
    ids=["jpeg", "png", "webp", "palette", "gif", "cmyk"],
)
def test_every_format_and_mode_becomes_rgb(image: Image.Image, file_format: str) -> None:
    decoded = images.decode(images.encode(image, file_format))
    assert decoded.mode == "RGB" and decoded.size == image.size
    original = drawing(0, *image.size)
    assert np.abs(np.asarray(decoded, dtype=float) - np.asarray(original)).mean() < 12


RAMP = np.linspace(0, 1, SIDE * SIDE).reshape(SIDE, SIDE)
GREY = {
    "8 bit": ((255 * RAMP).astype(np.uint8), "PNG"),
    "16 bit": ((65535 * RAMP).astype(np.uint16), "PNG"),
    "12 of 16 bit": ((4095 * RAMP).astype(np.uint16), "PNG"),
    "thermal": ((30_000 + 800 * RAMP).astype(np.uint16), "PNG"),
    "16 bit, big-endian": ((65535 * RAMP).astype(">u2"), "TIFF"),
    "32 bit": ((2e9 * RAMP - 1e9).astype(np.int32), "TIFF"),
    "float": (RAMP.astype(np.float32), "TIFF"),
    "large floats": ((6e38 * RAMP - 3e38).astype(np.float32), "TIFF"),
}


@pytest.mark.parametrize("name", GREY)
@pytest.mark.parametrize("orientation", [1, 6])
def test_grey_of_any_depth_is_scaled_and_upright(name: str, orientation: int) -> None:
    values, file_format = GREY[name]
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, file_format, exif=exif)
    decoded = np.asarray(images.decode(buffer.getvalue()), dtype=float)
    assert decoded.shape == (SIDE, SIDE, 3) and (decoded[..., 0] == decoded[..., 2]).all()
    expected = 255 * np.rot90(RAMP, 0 if orientation == 1 else -1)
    assert np.abs(decoded[..., 0] - expected).max() <= 1.5


def test_nan_and_infinity_are_replaced() -> None:
    values = RAMP.astype(np.float32)
    values[0, :3] = np.nan, np.inf, -np.inf
    decoded = np.asarray(images.decode(images.encode(Image.fromarray(values), "TIFF")))[..., 0]
    assert decoded[0, :3].tolist() == [0, 255, 0] and np.abs(decoded[1:] - 255 * RAMP[1:]).max() <= 1
    for value in (np.nan, np.inf, 7):
        flat = Image.fromarray(np.full((SIDE, SIDE), value, np.float32))
        assert not np.asarray(images.decode(images.encode(flat, "TIFF"))).any()


def half_transparent(mode: str) -> bytes:
    """A black picture whose left half is transparent, with a colour below it that is not black."""
    image = Image.new("LA", (SIDE, SIDE), (0, 255))
    image.paste((99, 0), (0, 0, SIDE // 2, SIDE))
    if mode in ("LA", "RGBA", "PA"):
        return images.encode(image.convert(mode), "TIFF" if mode == "PA" else "PNG")
    if mode == "16 bit":
        return images.encode(Image.fromarray(np.asarray(image)[..., 0].astype(np.uint16)), "PNG", transparency=99)
    image = image.convert("L").convert(mode)
    return images.encode(image, "PNG", transparency=(99, 99, 99) if mode == "RGB" else image.getpixel((0, 0)))


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P", "RGB", "L", "16 bit"])
def test_transparent_areas_become_white(mode: str) -> None:
    decoded = np.asarray(images.decode(half_transparent(mode)))
    assert (decoded[:, : SIDE // 2] == 255).all() and (decoded[:, SIDE // 2 :] == 0).all()
    stored = np.asarray(images.decode(images.shrink(Picture("a", "b", half_transparent(mode)), 64)[0].picture))
    assert stored[:, :30].min() > 240 and stored[:, 34:].max() < 15


def test_half_transparent_colours_are_blended_with_white() -> None:
    image = drawing(width=SIDE, height=SIDE)
    image.putalpha(128)
    decoded = np.asarray(images.decode(images.encode(image, "WEBP", lossless=True)), dtype=float)
    assert np.abs(decoded - (np.asarray(drawing(width=SIDE, height=SIDE)) + 255.0) / 2).max() <= 2


@pytest.mark.parametrize("compressed", [False, True])
def test_a_png_may_hold_a_long_text_or_profile(compressed: bool) -> None:
    text, buffer = PngInfo(), io.BytesIO()
    text.add_text("one", "x" * 2_000_000, zip=compressed)
    text.add_itxt("two", "x" * 2_000_000, zip=compressed)
    drawing().save(buffer, "PNG", pnginfo=text, icc_profile=bytes(2_000_000))
    images.check_header(buffer.getvalue())
    assert images.decode(buffer.getvalue()).tobytes() == drawing().tobytes()


def test_a_comment_is_not_passed_on() -> None:
    """Pillow would copy it into every JPEG made of the picture, and refuse a long one."""
    text, buffer = PngInfo(), io.BytesIO()
    text.add_text("comment", "x" * 70_000)
    drawing().save(buffer, "PNG", pnginfo=text)
    secret = images.encode(drawing(0, 600, 400), "JPEG", comment=b"secret")
    assert b"secret" in secret
    for data in (buffer.getvalue(), secret):
        shrunk, image = images.shrink(Picture("", "", data), 64)
        assert b"secret" not in shrunk.picture + images.thumbnail(image)


@pytest.mark.parametrize("block", [bytes(30), b"", b"MM\0*"], ids=["zeros", "empty", "cut off"])
def test_a_picture_with_broken_exif_is_used(block: bytes) -> None:
    data = images.encode(drawing(0, SIDE, SIDE), "JPEG", exif=b"Exif\0\0" + block, dpi=(72, 72))
    picture, image = images.shrink(Picture("", "", data), 256)
    assert picture.picture == data and image.size == (SIDE, SIDE)


def test_a_rotated_picture_with_a_broken_exif_tag_is_used() -> None:
    """The resolution is a text. Pillow cannot write it again."""
    tags = struct.pack(">HHII", 0x0112, 3, 1, 6 << 16) + struct.pack(">HHI4s", 0x011A, 2, 3, b"72\0")
    exif = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 2) + tags + bytes(4)
    image = images.decode(images.encode(drawing(0, 120, 80), "JPEG", exif=exif, dpi=(72, 72)))
    assert image.size == (80, 120)


def test_a_png_must_not_fill_the_memory_with_text() -> None:
    text, buffer = PngInfo(), io.BytesIO()
    text.add_text("bomb", "x" * 2**27, zip=True)
    drawing().save(buffer, "PNG", pnginfo=text)
    with pytest.raises(Unfit, match="broken"):
        images.decode(buffer.getvalue())


def test_a_picture_is_rotated_upright() -> None:
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise
    drawing(width=96, height=80).save(buffer, "JPEG", quality=95, exif=exif)
    upright = images.decode(buffer.getvalue())
    assert upright.size == (80, 96)
    expected = drawing(width=96, height=80).transpose(Image.Transpose.ROTATE_270)
    assert np.abs(np.asarray(upright, dtype=float) - np.asarray(expected)).mean() < 6


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (np.random.default_rng(0).bytes(5000), "broken"),
        (jpeg(drawing(width=300, height=300))[:2000], "broken"),
        (images.encode(drawing(width=300, height=300), "PNG")[:2000], "broken"),
        (empty_png(100, 100), "broken"),
        (empty_png(20_000, 20_000), "huge"),
        (empty_png(10_001, 10_000), "huge"),
        (jpeg(drawing(width=63, height=200)), "small"),
        (images.encode(Image.new("1", (80_000, 300)), "PNG"), "narrow"),
        (images.encode(Image.new("1", (300, 80_000)), "PNG"), "narrow"),
        (images.encode(Image.new("L", (65_000, 1)), "PNG"), "narrow"),
        (jpeg(drawing(width=4001, height=100)), "narrow"),
    ],
    ids=[
        "nothing",
        "noise",
        "truncated jpeg",
        "truncated png",
        "no pixels",
        "bomb",
        "large",
        "small",
        "wide",
        "tall",
        "line",
        "strip",
    ],
)
def test_an_unfit_picture_has_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(Unfit, match=f"^{reason}$"):
        images.decode(data)
    with pytest.raises(Unfit, match=f"^{reason}$"):
        images.shrink(Picture("a", "b", data), 64)


@pytest.mark.parametrize("size", [(64, 64), (64, 64 * 40), (4000, 100)])
def test_the_smallest_and_narrowest_accepted_pictures(size: tuple[int, int]) -> None:
    assert images.decode(jpeg(drawing(0, *size))).size == size


def test_the_widest_picture_can_be_encoded() -> None:
    """It has to be encoded because its mode is not RGB and it is too large."""
    data = images.encode(Image.new("1", (63_240, 1581)), "PNG")
    assert images.shrink(Picture("a", "b", data), 2000)[1].size == (63_240, 1581)


def test_the_filter_drops_an_unfit_picture_and_continues() -> None:
    data = [images.encode(Image.new("RGBA", size), "PNG") for size in [(80_000, 300), (80, 70)]]
    wide, fit = stages.filter.check([Picture(str(n), "b", picture) for n, picture in enumerate(data)], 256)
    assert wide[1] == {"id": "0", "landmark_id": "b", "reason": "narrow"}
    assert "reason" not in fit[1] and images.decode(fit[0].picture).size == (80, 70)


@pytest.mark.parametrize(("error", "reason"), [(MemoryError, "huge"), (OSError, "broken"), (RuntimeError, "broken")])
def test_any_error_while_decoding_is_a_reason(error: type[Exception], reason: str) -> None:
    with pytest.raises(Unfit, match=f"^{reason}$"), images.unfit("broken"):
        raise error


@pytest.mark.parametrize("size", [(96, 80), (80, 200), (80, 80)])
def test_shrink_keeps_the_bytes_of_a_small_jpeg(size: tuple[int, int]) -> None:
    picture = Picture("a", "b", jpeg(drawing(0, *size)), images.encode(Image.new("L", size, 255), "PNG"))
    shrunk, image = images.shrink(picture, 80)
    assert shrunk == picture
    assert image.size == size


@pytest.mark.parametrize(
    ("size", "expected"), [((800, 600), (107, 80)), ((600, 800), (80, 107)), ((81, 81), (80, 80)), ((2000, 81), None)]
)
def test_shrink_gives_the_short_side_the_requested_length(
    size: tuple[int, int], expected: tuple[int, int] | None
) -> None:
    mask = Image.new("L", size)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    shrunk, image = images.shrink(Picture("a", "b", jpeg(drawing(0, *size)), images.encode(mask, "PNG")), 80)
    stored, cells = images.decode(shrunk.picture), images.decode_mask(shrunk.mask)
    assert min(image.size) == 80 and image.size == stored.size == cells.size
    assert expected is None or image.size == expected
    assert np.abs(np.asarray(stored, dtype=float) - np.asarray(drawing(0, *image.size))).mean() < 6
    assert set(np.unique(cells)) == {0, 255}
    assert (np.asarray(cells) > 0).mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("mode", ["L", "CMYK", "P"])
def test_shrink_never_enlarges_and_converts_other_modes_to_an_rgb_jpeg(mode: str) -> None:
    data = images.encode(drawing(width=96, height=80).convert(mode), "PNG" if mode == "P" else "JPEG")
    shrunk, image = images.shrink(Picture("a", "b", data), 256)
    stored = Image.open(io.BytesIO(shrunk.picture))
    assert image.size == stored.size == (96, 80)
    assert stored.format == "JPEG" and stored.mode == "RGB" and shrunk.mask is None


def test_shrink_applies_the_exif_rotation_to_the_pixels() -> None:
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    drawing(width=96, height=80).save(buffer, "JPEG", exif=exif)
    shrunk, image = images.shrink(Picture("a", "b", buffer.getvalue()), 256)
    assert image.size == (80, 96)
    assert Image.open(io.BytesIO(shrunk.picture)).size == (80, 96)
    assert images.decode(shrunk.picture).size == (80, 96)


def test_shrink_keeps_the_bytes_of_a_picture_that_is_marked_as_upright() -> None:
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 1
    drawing().save(buffer, "JPEG", exif=exif)
    assert images.shrink(Picture("a", "b", buffer.getvalue()), 256)[0].picture == buffer.getvalue()


def test_shards_return_the_written_pictures_in_order(tmp_path: Path) -> None:
    written = pictures(150)
    images.write_shards(tmp_path, written, len(written))
    groups = [group.read() for group in images.row_groups(tmp_path)]
    assert [picture for group in groups for picture in group] == written
    assert max(map(len, groups)) <= images.GROUP_ROWS
    columns = list(images.read_columns(tmp_path, "landmark_id", "id"))
    assert columns == [(picture.landmark_id, picture.id) for picture in written]


@pytest.mark.parametrize("rows", [[], [0], [63, 64], [299, 5, 256, 255, 5]])
def test_single_pictures_are_read_in_id_order(tmp_path: Path, rows: list[int]) -> None:
    written = pictures(300)  # two shards, five row groups
    images.write_shards(tmp_path, written, len(written))
    ids = [written[row].id for row in rows]
    assert list(images.read_pictures(tmp_path, [*ids, "id-0001x"])) == [written[row] for row in sorted(set(rows))]


def test_without_pictures_there_are_no_shards(tmp_path: Path) -> None:
    images.write_shards(tmp_path, [], 0)
    assert images.shards(tmp_path) == [] and not list(images.read_columns(tmp_path, "id"))


@pytest.mark.parametrize("total", [1, 256, 257, 8192, 8193, 1_000_003])
def test_shards_are_few(total: int) -> None:
    assert -(-total // images.shard_rows(total)) <= images.MAX_SHARDS


def test_many_pictures_fill_at_most_32_files(tmp_path: Path) -> None:
    count = 32 * 256 + 1
    images.write_shards(tmp_path, (Picture(f"{n:05d}", "a", b"x") for n in range(count)), count)
    assert 1 < len(images.shards(tmp_path)) <= 32
    assert list(images.read_columns(tmp_path, "id")) == [(f"{n:05d}",) for n in range(count)]


HUGE = b"BM" + struct.pack("<IHHIIiiHHIIiiII", 0, 0, 0, 54, 40, 20_000, 20_000, 1, 24, 0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "empty"), (b"<html>Gone</html>", "no picture"), (HUGE, "huge"), (b"%!PS-Adobe-3.0 EPSF-3.0", "no picture")],
    ids=["empty", "html", "bomb", "eps"],
)
def test_check_header_rejects_other_files(data: bytes, reason: str) -> None:
    with pytest.raises(images.Unfit, match=reason):
        images.check_header(data)
    with pytest.raises(images.Unfit):
        images.decode(data)


def test_check_header_accepts_the_beginning_of_a_picture() -> None:
    picture = jpeg(drawing())
    images.check_header(picture[: len(picture) // 2])


def test_perceptual_hash_is_close_for_copies_and_far_for_others() -> None:
    def hashed(image: Image.Image) -> int:
        return images.perceptual_hash(image)

    image = drawing(0, 320, 256)
    original = hashed(image)
    assert 0 <= original < 2**64
    copies = [images.decode(jpeg(image, quality=40)), image.resize((160, 128)), image.resize((600, 480))]
    assert all((hashed(copy) ^ original).bit_count() <= 6 for copy in copies)
    assert all((hashed(drawing(seed, 320, 256)) ^ original).bit_count() > 12 for seed in range(1, 8))
