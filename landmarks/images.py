"""Pictures: how they are stored (Parquet shards in id order), decoded, checked and shrunk."""

import io
import math
import struct
import warnings
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pillow_heif
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import ExifTags, Image, ImageOps, PngImagePlugin

warnings.filterwarnings("ignore", module=r"PIL\.")  # about Pillow's own, lower size limit, and broken EXIF

MAX_SHARDS = 32
MIN_SHARD_ROWS = 256
GROUP_ROWS, GROUP_BYTES = 64, 1 << 26  # limits of a row group; one at a time is in memory
MAX_PIXELS = 100_000_000  # decoding takes 400 MB, of 16-bit grey 2 GB; larger pictures are scans or decompression bombs
MAX_BYTES = 1 << 30  # of a file; a picture of MAX_PIXELS has less, even with 16 bits per channel
# The accepted formats. Pillow reads more, some of which run programs (EPS) or are not pictures (MPEG).
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "HEIF", "PPM")
pillow_heif.register_heif_opener()
# An MPO file is a JPEG file with further pictures.
ENDINGS = frozenset(e for e, name in Image.registered_extensions().items() if name in (*FORMATS, "MPO"))
MIN_SIDE = 64  # pixels; a smaller picture, enlarged to 224, shows no detail of a building
# Ratio of the sides. Together with MAX_PIXELS, it keeps every shrunk picture within JPEG's 65,500 pixels a side.
MAX_ASPECT = 40
THUMBNAIL = 192  # pixels; the longer side of a thumbnail
# Pillow rejects PNGs with more than 1 MB in a text chunk or colour profile. Its limit for all text, 64 MB, remains.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY


class Picture(NamedTuple):
    """An encoded picture, a row of a shard. `mask` is a PNG, 255 where the landmark is visible; photographs: None."""

    id: str
    landmark_id: str
    picture: bytes
    mask: bytes | None = None
    author: str | None = None
    license: str | None = None
    title: str | None = None


SCHEMA = pa.schema(
    {name: pa.large_binary() if name in ("picture", "mask") else pa.string() for name in Picture._fields}
)


class Unfit(Exception):
    """A picture cannot be used. The message is the reason, in one or two words."""


def shard_rows(total: int) -> int:
    """Rows per shard, so that `total` rows fill at most `MAX_SHARDS` files."""
    return max(MIN_SHARD_ROWS, math.ceil(total / MAX_SHARDS))


def write_shards(directory: Path, pictures: Iterable[Picture], total: int) -> None:
    """Writes at most `total` pictures, given in id order, to `directory`/pictures-NNN.parquet."""
    directory.mkdir(parents=True, exist_ok=True)
    size = shard_rows(total)
    for number, rows in groupby(enumerate(pictures), lambda item: item[0] // size):
        # No compression: picture files are compressed already.
        with pq.ParquetWriter(directory / f"pictures-{number:03d}.parquet", SCHEMA, compression="none") as writer:
            for group in in_groups(picture for _, picture in rows):
                writer.write_table(pa.Table.from_pylist([picture._asdict() for picture in group], SCHEMA))


def in_groups(pictures: Iterable[Picture]) -> Iterator[list[Picture]]:
    """Splits the pictures of a shard into row groups."""
    group: list[Picture] = []
    for picture in pictures:
        group.append(picture)
        if len(group) == GROUP_ROWS or sum(len(p.picture) for p in group) >= GROUP_BYTES:
            yield group
            group = []
    if group:
        yield group


def shards(directory: Path) -> list[Path]:
    """The shards of a directory, in id order."""
    return sorted(directory.glob("pictures-*.parquet"))


class RowGroup(NamedTuple):
    """A row group of a shard, the smallest part that can be read on its own."""

    shard: Path
    number: int
    last_id: str

    def read(self) -> list[Picture]:
        """The pictures of the group, in id order."""
        with pq.ParquetFile(self.shard) as file:
            return [Picture(**row) for row in file.read_row_group(self.number, use_threads=False).to_pylist()]


def row_groups(directory: Path) -> Iterator[RowGroup]:
    """Lists the row groups of a directory of shards in id order, without reading the pictures."""
    for shard in shards(directory):
        with pq.ParquetFile(shard) as file:
            for number in range(file.num_row_groups):
                yield RowGroup(shard, number, file.read_row_group(number, columns=["id"])["id"][-1].as_py())


def read_pictures(directory: Path, ids: Iterable[str]) -> Iterator[Picture]:
    """Streams the pictures with these ids, in id order. Reads only the row groups that contain one of them."""
    wanted = sorted(set(ids))
    start = 0
    for group in row_groups(directory):
        stop = bisect_right(wanted, group.last_id)
        if stop > start:
            inside = set(wanted[start:stop])
            yield from (picture for picture in group.read() if picture.id in inside)
        start = stop


def read_columns(directory: Path, *columns: str) -> Iterator[tuple]:
    """Streams these columns of every picture in a directory of shards, in id order, as tuples."""
    for shard in shards(directory):
        with pq.ParquetFile(shard) as file:
            for batch in file.iter_batches(columns=columns):
                yield from zip(*(batch[name].to_pylist() for name in columns), strict=True)


@contextmanager
def unfit(reason: str) -> Iterator[None]:
    """Raises `Unfit` for whatever goes wrong with one picture: "huge" if memory does not suffice, else `reason`."""
    try:
        yield
    except Unfit:
        raise
    except (Image.DecompressionBombError, MemoryError):
        raise Unfit("huge") from None
    except Exception:  # Pillow's plugins raise many types for broken files
        raise Unfit(reason) from None


def open_image(data: bytes) -> Image.Image:
    """Reads the header of a picture. Raises `Unfit` if it is empty or has more than `MAX_PIXELS`."""
    if not data:
        raise Unfit("empty")
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise Unfit("huge")
    return image


@unfit("no picture")
def check_header(data: bytes) -> None:
    """Raises `Unfit` if `data` is not the beginning of a picture of at most `MAX_PIXELS`. Decodes no pixels."""
    open_image(data)


@unfit("broken")
def decode(data: bytes, short_side: int | None = None) -> Image.Image:
    """Decodes a picture to RGB on white, rotated upright by its EXIF tag.

    With `short_side` (pixels), a large JPEG is decoded at reduced size, but at least twice `short_side`. Raises `Unfit`
    if the picture is empty, broken, huge, narrow or small.
    """
    image = open_image(data)
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise Unfit("narrow")
    if short_side:
        image.draft("RGB", (2 * short_side, 2 * short_side))
    image.load()
    if orientation(image) != 1:
        for name in ("exif", "Raw profile type exif"):
            image.info.pop(name, None)  # otherwise Pillow encodes them anew, which fails if they are broken
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode[0] in "IF":
        image = to_8_bit(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode != "RGB":
        image = image.convert("RGB")
    if min(image.size) < MIN_SIDE:
        raise Unfit("small")
    image.info.pop("comment", None)  # Pillow would copy it into every JPEG made of the picture
    return image


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of a picture, 1 if it is upright or its EXIF data are broken."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except (SyntaxError, ValueError, struct.error):
        return 1


def to_8_bit(image: Image.Image) -> Image.Image:
    """Scales 16-bit, 32-bit or float grey so that its lowest and highest finite values become 0 and 255 (mode L).

    NaN becomes 0, infinity one of the two; the transparent value of a PNG becomes white.
    """
    with np.errstate(invalid="ignore"):
        values = np.array(image, dtype=np.float64)
    transparent = values == image.info.get("transparency")
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    np.nan_to_num(values, copy=False, nan=low, neginf=low, posinf=high)
    values -= low
    values *= 255 / ((high - low) or 1)
    values[transparent] = 255
    return Image.fromarray(np.rint(values, out=values).astype(np.uint8))


@unfit("broken")
def shrink(picture: Picture, short_side: int) -> tuple[Picture, Image.Image]:
    """Shrinks a picture and its mask to a short side of at most `short_side` pixels; also returns the decoded image.

    An upright RGB picture that is small enough keeps its bytes; others are encoded as JPEG. Raises `Unfit`.
    """
    image = decode(picture.picture, short_side)
    scale = short_side / min(image.size)
    original = open_image(picture.picture)
    if scale >= 1 and original.mode == "RGB" and original.size == image.size and orientation(original) == 1:
        return picture, image
    size = image.size if scale >= 1 else (round(image.width * scale), round(image.height * scale))
    if size != image.size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    mask, mask_image = picture.mask, decode_mask(picture.mask)
    if mask_image is not None:
        mask = encode(mask_image.resize(size, Image.Resampling.NEAREST), "PNG")
    return picture._replace(picture=encode(image, "JPEG", quality=95), mask=mask), image


def decode_mask(data: bytes | None) -> Image.Image | None:
    """The mask of a picture as an image (mode L), or None."""
    return None if data is None else Image.open(io.BytesIO(data)).convert("L")


def encode(image: Image.Image, file_format: str, **options: int) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def thumbnail(image: Image.Image) -> bytes:
    """A JPEG of at most `THUMBNAIL` pixels a side."""
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return encode(small, "JPEG", quality=80)


def perceptual_hash(image: Image.Image) -> int:
    """A 64-bit hash of the picture's low frequencies (imagehash.phash); near-duplicates differ in few bits."""
    import imagehash  # imported here because it is slow

    return int(str(imagehash.phash(image)), 16)
