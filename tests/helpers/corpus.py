"""Awkward images made here, each with what must become of it, and writers of every layout that is read."""

import csv
import io
import json
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def encode(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def noise(seed: int = 0, size: tuple[int, int] = (12, 8)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def number(value: int) -> bytes:
    """An image that says which one it is: see ``read_number``."""
    return encode(Image.new("RGB", (2, 2), (value // 256, value % 256, 0)))


def read_number(image: Image.Image) -> int:
    red, green, _ = image.getpixel((0, 0))
    return red * 256 + green


def promised_png(width: int, height: int) -> bytes:
    """A valid header that promises as many pixels, in some 60 bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def rotated(orientation: int = 6) -> bytes:  # by 90 degrees clockwise
    image = Image.new("RGB", (4, 2), "white")
    image.putpixel((0, 0), (0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(image, exif=exif)


def animation(frames: int = 3) -> bytes:
    first, *rest = [noise(seed) for seed in range(frames)]
    return encode(first, "GIF", save_all=True, append_images=rest)


PHOTO = encode(noise(size=(64, 64)), "JPEG")
BAD_IMAGES = {  # name: (bytes, reason, what the detail says)
    "empty": (b"", "empty", "0 bytes"),
    "truncated": (PHOTO[: len(PHOTO) // 2], "corrupt", "truncated"),
    "flipped": (encode(noise())[:60] + b"\xff" * 40, "corrupt", "cannot be read"),
    "text": (b"hello, I am a text", "unknown_format", "is not an image"),
    "html": (b"<html><body>404</body></html>", "unknown_format", "is not an image"),
    "heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "unknown_format", "HEIC is not supported"),
    "megapixels_400": (promised_png(20_000, 20_000), "too_large", "400000000 pixels"),
    "megapixels_100": (promised_png(10_000, 10_000), "too_large", "100000000 pixels"),
    "spacer": (encode(Image.new("RGB", (1, 1))), "too_small", "1 × 1"),
    "line": (encode(Image.new("RGB", (900, 1))), "too_small", "900 × 1"),
    "lab": (encode(Image.new("LAB", (4, 4)), "TIFF"), "corrupt", "colour mode LAB is not supported"),
}
ODD_IMAGES = {  # name: (bytes, note)
    "cmyk": (encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"), "cmyk"),
    "palette": (encode(noise().quantize(16)), "palette"),
    "grey": (encode(noise().convert("L")), "grey"),
    "deep": (encode(Image.fromarray(np.full((4, 4), 32_896, np.uint16))), "16_bit"),
    "alpha": (encode(Image.new("RGBA", (4, 4), (0, 0, 0, 0))), "alpha"),
    "rotated": (rotated(), "rotated"),
    "animated": (animation(), "first_frame"),
}


# Layouts: each is given a folder and (key, image, captions) and returns what to open


def write_folder(folder: Path, rows) -> Path:
    for key, image, captions in rows:
        (folder / f"{key}.png").write_bytes(image)
        (folder / f"{key}.txt").write_text("\n".join(captions), encoding="utf-8")
    return folder


def write_csv(folder: Path, rows, delimiter: str = ",", name: str = "captions.csv") -> Path:
    with (folder / name).open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["file_name", "caption_0", "caption_1"])
        for key, image, captions in rows:
            (folder / f"{key}.png").write_bytes(image)
            writer.writerow([f"{key}.png", *([*captions, "", ""][:2])])
    return folder / name


def write_tsv(folder: Path, rows) -> Path:
    return write_csv(folder, rows, "\t", "rows.tsv")


def write_jsonl(folder: Path, rows) -> Path:
    with (folder / "metadata.jsonl").open("w", encoding="utf-8") as file:
        for key, image, captions in rows:
            (folder / f"{key}.png").write_bytes(image)
            file.write(json.dumps({"file_name": f"{key}.png", "text": list(captions)}) + "\n")
    return folder


def write_parquet(folder: Path, rows, row_group_size: int = 3) -> Path:
    table = pa.table(
        {
            "image": [{"bytes": image, "path": f"{key}.png"} for key, image, _ in rows],
            "captions": pa.array([list(captions) for *_, captions in rows], pa.list_(pa.string())),
        }
    )
    pq.write_table(table, folder / "rows.parquet", row_group_size=row_group_size)
    return folder / "rows.parquet"


def write_members(path: Path, members, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def write_tar(folder: Path, rows) -> Path:
    members = []
    for key, image, captions in rows:
        members += [(f"{key}.jpg", image), (f"{key}.txt", "\n".join(captions).encode())]
        described = "of the metadata" if any(map(str.strip, captions)) else ""
        members += [(f"{key}.json", json.dumps({"caption": described, "key": key}).encode())]
    return write_members(folder / "00000.tar", members)


LAYOUTS = {
    "folder": write_folder,
    "csv": write_csv,
    "tsv": write_tsv,
    "jsonl": write_jsonl,
    "parquet": write_parquet,
    "tar": write_tar,
}
