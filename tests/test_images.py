"""Pictures: odd ones become the right pixels, broken and hostile ones a sentence, within a gigabyte and seconds."""

import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import PROGRAMS
from PIL import Image, ImageFile, PngImagePlugin

from runner import spec, task_image
from runner.errors import SpecError
from runner.task_image import find_picture, load_picture, to_rgb

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)
Bytes = Callable[[], bytes]


def noise(mode: str = "RGB", size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A picture without structure, so that half of its file is far from all of it."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """The bytes of a file of that kind."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG, with its right checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, data: bytes, *, bits: int = 8, colour: int = 2, extra: bytes = b"") -> bytes:
    """A PNG whose header need not fit its compressed data."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def tiff(tags: list[tuple[int, int, int, int]], tail: bytes = b"") -> bytes:
    """A little-endian TIFF of one directory; tags are number, type, count and value."""
    entries = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + tail


def tiff_of_overlapping_tags() -> bytes:
    """400 tags that all are the same 20 MB of the file: older decoders read 8 GB."""
    basics = [(256, 4, 1, 1), (257, 4, 1, 1), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 8), (279, 4, 1, 1)]
    return tiff(basics + [(40000 + number, 7, 20_000_000, 8192) for number in range(400)], bytes(20_010_000))


def tiff_of_many_strips() -> bytes:
    """Ten million rows of one pixel, each with an offset of its own, which Pillow turns into as many tuples."""
    rows = 10_000_000
    tags = [(256, 4, 1, 1), (257, 4, 1, rows), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1)]
    return tiff([*tags, (273, 4, rows, 1024), (278, 4, 1, 1)], bytes(1024 + 4 * rows))


def tiff_of_a_huge_tile() -> bytes:
    """One pixel in a tile of 1.2 GB, which deflate makes small."""
    data = zeros(123)
    tags = [(256, 4, 1, 1), (257, 4, 1, 1), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1)]
    tiles = [(322, 4, 1, 35008), (323, 4, 1, 35008), (324, 4, 1, 1024), (325, 4, 1, len(data))]
    start = tiff(tags + tiles)
    return start + bytes(1024 - len(start)) + data


def jpeg_of_many_scans() -> bytes:
    """A progressive JPEG that repeats one of its scans sixty thousand times."""
    data = encoded(Image.new("L", (4000, 4000)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * 60_000 + data[-2:]


def gif_of_a_long_comment() -> bytes:
    """A white pixel after 90 MB of comment, which older decoders copied whole for every 255 bytes."""
    data = encoded(of("L", 255), "GIF")
    image = data.index(b",", 13 + 3 * 2 ** ((data[10] & 7) + 1))
    return data[:image] + b"!\xfe" + (b"\xff" + bytes(255)) * 350_000 + b"\0" + data[image:]


def damaged_checksum() -> bytes:
    """A PNG with one wrong bit in the checksum of its header."""
    data = bytearray(encoded(noise(), "PNG"))
    data[29] ^= 1
    return bytes(data)


def cut(kind: str, **options: object) -> Bytes:
    """The first half of a file."""

    def make() -> bytes:
        data = encoded(noise(), kind, **options)
        return data[: len(data) // 2]

    return make


def zeros(times: int) -> bytes:
    """So often ten million zeros, in zlib's format; they are compressed once."""
    packer = zlib.compressobj(1, wbits=-zlib.MAX_WBITS)
    block = packer.compress(bytes(10_000_000)) + packer.flush(zlib.Z_FULL_FLUSH)  # which refers to none before it
    checksum = times * 10_000_000 % 65521 << 16 | 1  # Adler's, of zeros
    return b"\x78\x01" + times * block + packer.flush() + struct.pack(">I", checksum)


def bomb() -> bytes:
    """A gigabyte of zeros in five megabytes."""
    return zeros(100)


def of_text(data: bytes) -> Bytes:
    """A file of exactly these bytes."""
    return lambda: data


REFUSED: dict[str, tuple[Bytes, str]] = {
    "noise.png": (lambda: np.random.default_rng(0).bytes(4096), "is no picture"),
    "text.jpg": (of_text(b"This is not a picture.\n"), "is no picture"),
    "empty.png": (of_text(b""), "is empty"),
    "one_byte.png": (of_text(b"\x89"), "is no picture"),
    "signature.png": (of_text(b"\x89PNG\r\n\x1a\n"), "is no picture|is damaged"),
    "cut.png": (cut("PNG"), "is damaged or cut off"),
    "cut.jpg": (cut("JPEG"), "is damaged or cut off"),
    "cut.gif": (cut("GIF"), "is damaged or cut off"),
    "cut.webp": (cut("WEBP", lossless=True), "is damaged or cut off"),
    "cut.bmp": (cut("BMP"), "is damaged or cut off"),
    "cut.ppm": (cut("PPM"), "is damaged or cut off"),
    "cut.tif": (cut("TIFF"), "is damaged or cut off|is no picture"),
    "cut_lzw.tif": (cut("TIFF", compression="tiff_lzw"), "is damaged or cut off|is no picture"),
    "checksum.png": (damaged_checksum, "is no picture|is damaged"),
    "no_data.png": (lambda: png(8, 8, b""), "is damaged"),
    "bad_zlib.png": (lambda: png(8, 8, b"not zlib at all"), "is damaged"),
    "zero.png": (lambda: png(0, 8, zlib.compress(b"")), "has 0 x 8 pixels|is damaged|is no picture"),
    "zero.bmp": (
        lambda: b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 0, 0, 1, 24, *[0] * 6),
        "image.path",
    ),
    "header.png": (lambda: png(100_000, 100_000, zlib.compress(bytes(99))), "50,000,000 pixels"),
    "just_over.png": (lambda: png(50_000_001, 1, zlib.compress(bytes(99))), "has 50000001 x 1 pixels"),
    "warned.png": (lambda: png(10_000, 10_000, zlib.compress(bytes(99))), "has 10000 x 10000 pixels"),
    "screen.gif": (lambda: b"GIF89a\xff\xff\xff\xff" + encoded(noise(), "GIF")[10:], "50,000,000 pixels"),
    "strips.tif": (tiff_of_many_strips, "memory"),
    "tile.tif": (tiff_of_a_huge_tile, "memory|is damaged"),
    "scans.jpg": (jpeg_of_many_scans, "takes more than 3 s"),
    "postscript.eps": (of_text(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "is no picture"),
    "postscript.png": (lambda: encoded(noise(), "EPS"), "is no picture"),
    "document.pdf": (lambda: encoded(noise(), "PDF"), "is no picture"),
    "drawing.svg": (of_text(b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'), "is no picture"),
    "page.html": (of_text(b"<!DOCTYPE html><title>404</title>"), "is no picture"),
    "icon.ico": (lambda: encoded(noise(), "ICO"), "is no picture"),
    "photoshop.psd": (of_text(b"8BPS\0\1" + bytes(64)), "is no picture"),
    "pointer.png": (of_text(b"version https://git-lfs.github.com/spec/v1\n"), "is no picture"),
    "fraction.tif": (lambda: encoded(Image.new("F", (4, 4), 0.5), "TIFF"), "nothing says which is white"),
    "integer.tif": (lambda: encoded(Image.new("I", (4, 4), 70_000), "TIFF"), "nothing says which is white"),
}
HOSTILE = ["header.png", "screen.gif", "strips.tif", "tile.tif", "scans.jpg"]


def assert_refused(path: Path, said: str, expected: str) -> None:
    """Whatever is wrong with a file, the user reads one line that begins with the key of the spec and the file."""
    assert re.search(expected, said), said
    assert said.startswith(f"image.path: {path}: ")
    assert "\n" not in said


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in REFUSED if name not in HOSTILE])
def test_a_file_that_cannot_be_shown_is_refused(tmp_path: Path, name: str) -> None:
    """Empty, foreign, damaged or of a kind that nothing shows; it can be deleted then."""
    make, expected = REFUSED[name]
    path = tmp_path / name
    path.write_bytes(make())
    with pytest.raises(SpecError) as caught:
        load_picture(path)
    path.unlink()
    assert_refused(path, str(caught.value), expected)


@pytest.mark.slow
def test_a_bomb_of_zeros_gives_only_the_pixels_of_its_header(tmp_path: Path) -> None:
    """A gigabyte of zeros behind a header of 8 x 8 pixels is 64 black pixels."""
    path = tmp_path / "bomb.png"
    path.write_bytes(png(8, 8, bomb()))
    assert load_picture(path).image.getcolors() == [(64, BLACK)]


def test_a_file_of_too_many_bytes_is_refused_unread(tmp_path: Path) -> None:
    """101 MB are refused for their size alone."""
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.truncate(101_000_000)
    with pytest.raises(SpecError, match="has 101,000,000 bytes, more than 100,000,000"):
        load_picture(path)


def no_file(folder: Path, kind: str) -> Path:
    """An entry of a folder that is no file to open."""
    path = folder / "odd.png"
    match kind:
        case "folder":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "link to nothing":
            path.symlink_to(folder / "missing.png")
        case "link to itself":
            path.symlink_to(path)
        case "device":
            path = Path("/dev/zero")
        case "long name":
            path = folder / ("a" * 300 + ".png")
    return path


NO_FILES = {
    "folder": "is a folder",
    "fifo": "is no regular file",
    "link to nothing": "No such file",
    "link to itself": "symbolic links",
    "device": "is no regular file",
    "long name": "too long",
    "missing": "No such file",
}


@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_file_is_never_opened(tmp_path: Path, kind: str) -> None:
    """A FIFO or a device would wait or read for ever; each is named for what it is."""
    path = no_file(tmp_path, kind)
    with pytest.raises(SpecError, match=NO_FILES[kind]) as caught:
        load_picture(path)
    assert str(caught.value).startswith(f"image.path: {path}: ")


@pytest.mark.parametrize("kind", [kind for kind in NO_FILES if kind not in {"missing", "long name"}])
def test_what_is_no_file_is_not_found_either(tmp_path: Path, kind: str) -> None:
    """The check before a run says the same as the run."""
    with pytest.raises(SpecError, match=NO_FILES[kind]):
        find_picture(str(no_file(tmp_path, kind)), tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_says_so(tmp_path: Path) -> None:
    """Permission is the user's to give."""
    path = tmp_path / "private.png"
    noise().save(path)
    path.chmod(0)
    with pytest.raises(SpecError, match="may not be read"):
        load_picture(path)


def test_a_refused_permission_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As above, for whoever tests as root."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(SpecError, match="may not be read"):
        task_image._decode(tmp_path / "private.png")


def grey16() -> Image.Image:
    """Black, a value whose upper byte alone would be wrong, and white, in 16 bits."""
    return Image.fromarray(np.array([[0, 0x40FF, 65535]], dtype=np.uint16))


def palette(*, transparent: bool) -> bytes:
    """Red beside blue by palette, the blue transparent or not."""
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putpixel((1, 0), 1)
    return encoded(image, "PNG", **({"transparency": 1} if transparent else {}))


def frames(kind: str) -> bytes:
    """A red picture, then a blue one."""
    red, blue = (Image.new("RGB", (2, 1), colour) for colour in (RED, BLUE))
    options = {"lossless": True} if kind == "WEBP" else {}
    return encoded(red, kind, save_all=True, append_images=[blue], **options)


def palette_with_alpha() -> Image.Image:
    """A red by palette that is four fifths transparent."""
    image = Image.new("PA", (1, 1))
    image.putpalette([*BLACK, *RED])
    image.putpixel((0, 0), (1, 51))
    return image


def of(mode: str, *colours: object) -> Image.Image:
    """One row of pixels."""
    image = Image.new(mode, (len(colours), 1))
    for column, colour in enumerate(colours):
        image.putpixel((column, 0), colour)
    return image


def rgb16() -> bytes:
    """Red beside blue in 3 x 16 bits, which Pillow can read but not write."""
    return png(2, 1, zlib.compress(b"\0" + bytes.fromhex("ffff00000000 00000000ffff")), bits=16)


SHOWN: dict[str, tuple[Bytes, list[tuple[int, int, int]]]] = {
    "1.png": (lambda: encoded(of("1", 0, 1), "PNG"), [BLACK, WHITE]),
    "1.tif": (lambda: encoded(of("1", 0, 1), "TIFF"), [BLACK, WHITE]),
    "L.png": (lambda: encoded(of("L", 7, 200), "PNG"), [(7, 7, 7), (200, 200, 200)]),
    "L_trns.png": (lambda: encoded(of("L", 7, 200), "PNG", transparency=7), [WHITE, (200, 200, 200)]),
    "LA.png": (lambda: encoded(of("LA", (0, 255), (0, 0), (0, 51)), "PNG"), [BLACK, WHITE, (204, 204, 204)]),
    "P.png": (lambda: palette(transparent=False), [RED, BLUE]),
    "P_trns.png": (lambda: palette(transparent=True), [RED, WHITE]),
    "P.gif": (lambda: encoded(of("RGB", RED, BLUE), "GIF"), [RED, BLUE]),
    "RGB.png": (lambda: encoded(of("RGB", RED, GREEN), "PNG"), [RED, GREEN]),
    "RGB_trns.png": (lambda: encoded(of("RGB", RED, GREEN), "PNG", transparency=RED), [WHITE, GREEN]),
    "RGB16.png": (rgb16, [RED, BLUE]),
    "RGBA.png": (lambda: encoded(of("RGBA", (*RED, 255), (*RED, 0), (0, 0, 0, 51)), "PNG"), [RED, WHITE, (204,) * 3]),
    "RGBA.webp": (lambda: encoded(of("RGBA", (*RED, 255), (*RED, 0)), "WEBP", lossless=True), [RED, WHITE]),
    "RGBA.tif": (lambda: encoded(of("RGBA", (*RED, 255), (*RED, 0)), "TIFF"), [RED, WHITE]),
    "I16.png": (lambda: encoded(grey16(), "PNG"), [BLACK, (65,) * 3, WHITE]),
    "I16.tif": (lambda: encoded(grey16(), "TIFF"), [BLACK, (65,) * 3, WHITE]),
    "I16.pgm": (lambda: b"P5 3 1 65535\n" + bytes.fromhex("0000 40ff ffff"), [BLACK, (65,) * 3, WHITE]),
    "CMYK.tif": (lambda: encoded(of("CMYK", (0, 255, 255, 0), (0, 0, 0, 255)), "TIFF"), [RED, BLACK]),
    "RGB.bmp": (lambda: encoded(of("RGB", RED, GREEN), "BMP"), [RED, GREEN]),
    "RGB.ppm": (lambda: encoded(of("RGB", RED, GREEN), "PPM"), [RED, GREEN]),
    "plain.ppm": (of_text(b"P3 2 1 255 255 0 0 0 255 0\n"), [RED, GREEN]),
    "comment.gif": (gif_of_a_long_comment, [WHITE]),
    "one.png": (lambda: encoded(of("RGB", RED), "PNG"), [RED]),
    "frames.gif": (lambda: frames("GIF"), [RED, RED]),
    "frames.png": (lambda: frames("PNG"), [RED, RED]),
    "frames.webp": (lambda: frames("WEBP"), [RED, RED]),
    "pages.tif": (lambda: frames("TIFF"), [RED, RED]),
    "a png called.jpg": (lambda: encoded(of("RGB", RED, GREEN), "PNG"), [RED, GREEN]),
    "no_ending": (lambda: encoded(of("RGB", RED, GREEN), "BMP"), [RED, GREEN]),
    "a picture.eps": (lambda: encoded(of("RGB", RED, GREEN), "PNG"), [RED, GREEN]),
    "mit Umläuten äöü 😀.png": (lambda: encoded(of("RGB", RED, GREEN), "PNG"), [RED, GREEN]),
    "-W error.png": (lambda: encoded(of("RGB", RED, GREEN), "PNG"), [RED, GREEN]),
    "bad_exif.png": (lambda: encoded(of("RGB", RED, GREEN), "PNG", exif=b"Exif\0\0MM\0*\xff\xff"), [RED, GREEN]),
    "odd_text.png": (
        lambda: png(1, 1, zlib.compress(bytes([0, *RED])), extra=chunk(b"zTXt", b"a\0\0" + b"x")),
        [RED],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHOWN)
def test_every_mode_and_format_gives_its_pixels(tmp_path: Path, name: str) -> None:
    """What a viewer shows on white paper is what the model sees: first frame, 16 bits scaled, nothing clipped."""
    make, expected = SHOWN[name]
    path = tmp_path / name
    path.write_bytes(make())
    image = load_picture(path).image
    assert image.mode == "RGB"
    assert image.size == (len(expected), 1)
    assert [image.getpixel((column, 0)) for column in range(len(expected))] == expected


def test_lab_is_close_to_its_colours(tmp_path: Path) -> None:
    """The colours of CIELAB, which Pillow converts only by profile, to the roundings of L, a and b."""
    path = tmp_path / "a.tif"
    of("LAB", (255, 128, 128), (0, 128, 128), (138, 209, 198)).save(path)  # L of 255, a and b from 128
    difference = np.asarray(load_picture(path).image, int) - np.array([[WHITE, BLACK, RED]])
    assert abs(difference).max() <= 6


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}], ids=str)
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpegs_of_every_kind_are_close_to_their_source(tmp_path: Path, mode: str, options: dict[str, object]) -> None:
    """Progressive or not, and CMYK the right way round."""
    path = tmp_path / "a.jpg"
    source = Image.new("RGB", (32, 24), (200, 120, 40)).convert(mode)
    source.save(path, quality=100, **options)
    difference = np.asarray(load_picture(path).image, int) - np.asarray(source.convert("RGB"), int)
    assert abs(difference).max() <= 3


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (of("RGB", RED).convert("HSV"), RED),
        (of("RGB", WHITE).convert("YCbCr"), WHITE),
        (of("RGBA", (0, 0, 0, 51)).convert("RGBa"), (204, 204, 204)),
        (of("LA", (0, 51)).convert("La"), (204, 204, 204)),
        (palette_with_alpha(), (255, 204, 204)),
        (of("L", 9).convert("RGBX"), (9, 9, 9)),
        (of("I;16B", 65535), WHITE),
        (of("I;16L", 0x40FF), (65, 65, 65)),
    ],
    ids=lambda value: getattr(value, "mode", ""),
)
def test_modes_that_few_files_have(image: Image.Image, expected: tuple[int, int, int]) -> None:
    """Pillow's remaining modes become the same colours on white."""
    assert to_rgb(image).getpixel((0, 0)) == expected


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (3, 257), (1, 512)], ids=str)
def test_thin_pictures_arrive_whole(tmp_path: Path, size: tuple[int, int]) -> None:
    """Neither the shape nor the strips in which pixels travel lose any."""
    path = tmp_path / "a.png"
    source = noise(size=size)
    source.save(path)
    assert load_picture(path).image.tobytes() == source.tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(tmp_path: Path, orientation: int, kind: str) -> None:
    """The corner that is stored first ends where EXIF says: 1 top left, 2 top right, 3 bottom right and so on."""
    corner, wide = {
        1: ("top left", True),
        2: ("top right", True),
        3: ("bottom right", True),
        4: ("bottom left", True),
        5: ("top left", False),
        6: ("top right", False),
        7: ("bottom right", False),
        8: ("bottom left", False),
    }[orientation]
    source = Image.new("RGB", (48, 32))
    source.paste("white", (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a"
    source.save(path, kind, exif=exif)
    image = load_picture(path).image
    assert image.size == ((48, 32) if wide else (32, 48))
    right, bottom = image.width - 8, image.height - 8
    corners = {"top left": (8, 8), "top right": (right, 8), "bottom left": (8, bottom), "bottom right": (right, bottom)}
    assert [name for name, place in corners.items() if image.getpixel(place)[0] > 128] == [corner]


@pytest.mark.slow
def test_equal_pixels_have_equal_digests(tmp_path: Path) -> None:
    """The digest names the picture, whatever its file is called and however it is packed."""
    source = noise()
    for name in ("a.png", "b.bmp", "c.tif", "d.ppm"):
        source.save(tmp_path / name)
    source.save(tmp_path / "e.webp", lossless=True)
    source.convert("RGBA").save(tmp_path / "f.png", compress_level=1)
    shutil.copy(tmp_path / "a.png", tmp_path / "g h.jpg")
    digests = {load_picture(path).digest for path in tmp_path.iterdir()}
    assert len(digests) == 1
    assert all(len(digest) == 16 and int(digest, 16) >= 0 for digest in digests)


def test_other_pixels_have_other_digests(tmp_path: Path) -> None:
    """One pixel that differs by one, or the same pixels in another shape, make another picture."""
    first = noise()
    second = first.copy()
    red, green, blue = first.getpixel((5, 5))
    second.putpixel((5, 5), (red, green, blue ^ 1))
    third = Image.frombytes("RGB", (48, 64), first.tobytes())
    for name, image in (("a.png", first), ("b.png", second), ("c.png", third)):
        image.save(tmp_path / name)
    assert len({load_picture(path).digest for path in tmp_path.iterdir()}) == 3


def test_pillow_is_left_as_it_was(tmp_path: Path) -> None:
    """Loading changes no setting that other code relies on."""
    before = (Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, ImageFile.LOAD_TRUNCATED_IMAGES)
    noise().save(tmp_path / "a.png")
    load_picture(tmp_path / "a.png")
    assert before == (Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, ImageFile.LOAD_TRUNCATED_IMAGES)


def test_pictures_are_found_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An absolute path, beside the spec, beside the prompts of the study, among what ships: the first that is there."""
    specs, shipped = tmp_path / "specs", tmp_path / "shipped"
    monkeypatch.setattr(spec, "find_shipped", lambda kind: shipped / kind)
    places = [specs / "a.png", tmp_path / "prompts" / "images" / "a.png", shipped / "prompts" / "images" / "a.png"]
    for place in places:
        place.parent.mkdir(parents=True)
        place.write_bytes(b"x")
    for place in places:
        assert find_picture("a.png", specs) == place
        assert find_picture(str(places[-1]), specs) == places[-1]
        place.unlink()
    with pytest.raises(SpecError, match=r"image\.path: there is no 'a\.png' in") as caught:
        find_picture("a.png", specs)
    assert all(str(place.parent) in str(caught.value) for place in places)


@pytest.mark.parametrize("path", ["", " ", "a\0b"])
def test_a_path_that_names_nothing_is_refused(tmp_path: Path, path: str) -> None:
    """A picture that is enabled needs a file."""
    with pytest.raises(SpecError, match=r"^image\.path: .* names no file"):
        find_picture(path, tmp_path)


def test_an_empty_file_is_not_found(tmp_path: Path) -> None:
    """An empty file hides no later one: the user hears of it."""
    (tmp_path / "a.png").touch()
    with pytest.raises(SpecError, match=r"^image\.path: .*a\.png: is empty"):
        find_picture("a.png", tmp_path)


@pytest.mark.slow
def test_hostile_files_stay_under_a_gigabyte_and_a_minute(tmp_path: Path) -> None:
    """All of them after another, in one process and those that it starts, and refused; the time is of the processor."""
    files = {name: REFUSED[name][0] for name in HOSTILE}
    files |= {"bomb.png": lambda: png(8, 8, bomb()), "tags.tif": tiff_of_overlapping_tags}
    files |= {"comment.gif": gif_of_a_long_comment}
    for name, make in files.items():
        (tmp_path / name).write_bytes(make())
    # Through a shell, because a process inherits the peak of the one that starts it, here pytest's.
    command = ["/bin/sh", "-c", '"$@" || exit 1', "sh", sys.executable, PROGRAMS / "open_pictures.py", tmp_path]
    environment = os.environ | {"PYTHONPATH": str(Path(task_image.__file__).parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["peak"] < 1e9
    assert found["seconds"] < 60  # of processor time
    for name in HOSTILE:
        (tmp_path / name).unlink()
        assert_refused(tmp_path / name, found["refused"][name], REFUSED[name][1])
