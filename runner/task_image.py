"""From the file of a picture to RGB pixels that a processor can take; colour profiles are left out, as processors do.

A process of its own decodes, whose memory and time the kernel limits (on Linux; elsewhere a timeout does): Pillow
checks the sizes in headers, but the tags, tiles and scans of a small file can still cost gigabytes and hours.
"""

import contextlib
import hashlib
import os
import stat
import struct
import subprocess
import sys
import zlib
from pathlib import Path

from attrs import frozen
from PIL import Image, ImageCms, UnidentifiedImageError

from runner.errors import SpecError

MOST_PIXELS = 50_000_000
MOST_BYTES = 100_000_000
MOST_MEMORY = 900_000_000  # of the process that decodes, libraries included
MOST_SECONDS = 10  # of its processor time, so that a busy machine refuses nothing

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # rasters only: EPS would run Ghostscript
_REFUSED = 3  # the exit code of the process that decodes when its last words are for the user
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_BROKEN: tuple[type[Exception], ...] = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError)
_BROKEN += (OverflowError, EOFError, struct.error, zlib.error)  # all that Pillow may raise on a damaged file
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@frozen
class Picture:
    """An upright, opaque RGB image in memory; equal pixels have equal digests, whatever the file."""

    image: Image.Image
    digest: str


def find_picture(path: str, spec_folder: Path) -> Path:
    """The file that `image.path` means: absolute, beside the spec, in `prompts/images` beside its folder, or shipped.

    Raises:
        SpecError: there is none, or the first one found is empty, too large or no regular file.
    """
    if not path.strip() or "\0" in path:
        raise SpecError(f"image.path: {path!r} names no file: write the path of a picture")
    from runner.spec import find_shipped  # half of the time in which the process that decodes would start

    folder = spec_folder.resolve()
    folders = [folder, folder.parent / "prompts" / "images", find_shipped("prompts") / "images"]
    candidates = [Path(path)] if Path(path).is_absolute() else [place / path for place in folders]
    for candidate in candidates:
        if os.path.lexists(candidate):
            _check_file(candidate)
            return candidate
    searched = ", ".join(str(candidate.parent) for candidate in dict.fromkeys(candidates))
    raise SpecError(
        f"image.path: there is no {path!r} in {searched}: write a path from the spec's folder, or a whole one"
    )


def load_picture(path: Path) -> Picture:
    """The first frame of a picture, upright as its EXIF says, its transparent parts white.

    Raises:
        SpecError: the file is no picture, is damaged, or would take more than the limits of this module.
    """
    _check_file(path)
    command = [sys.executable, "-P", "-W", "ignore", "-m", "runner.task_image", str(path.absolute()), str(MOST_SECONDS)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(place or "." for place in sys.path)}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, check=False, timeout=10 * MOST_SECONDS)  # noqa: S603 - this module
    except subprocess.TimeoutExpired as error:
        raise SpecError(f"image.path: {path}: takes too long to decode: save it anew as PNG") from error
    if done.returncode == _REFUSED:
        raise SpecError(f"image.path: {path}: {done.stderr.decode(errors='replace').strip()}")
    if done.returncode:
        raise SpecError(
            f"image.path: {path}: decoding it takes more than {MOST_SECONDS} s or {MOST_MEMORY:,} bytes of memory, "
            f"or ends the decoder (exit code {done.returncode}): save it anew as PNG"
        )
    header, pixels = done.stdout.split(b"\n", 1)
    width, height = map(int, header.split())
    digest = hashlib.sha256(b"RGB " + header + b"\n")
    digest.update(pixels)
    return Picture(Image.frombytes("RGB", (width, height), pixels), digest.hexdigest()[:16])


def to_rgb(image: Image.Image) -> Image.Image:
    """A loaded image of any mode as RGB on white; grey of 16 bits keeps its upper 8, rounded."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in {"PNG", "PPM"}):
        return image.convert("I").point([round(value / 257) for value in range(65536)], "L").convert("RGB")
    if image.mode in {"I", "F"}:
        raise SpecError(
            "its pixels are whole numbers of 32 bits or fractions, and nothing says which is white: "
            "save it as PNG with 8 or 16 bits"
        )
    if image.mode == "LAB":
        profiles = (ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"))
        return ImageCms.buildTransform(*profiles, "LAB", "RGB").apply(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    opaque = Image.new("RGB", image.size, "white")
    image = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
    opaque.paste(image, mask=image)
    return opaque


def _check_file(path: Path) -> None:
    """Refuse what must not be opened, from its entry in the folder alone: a FIFO would wait for ever."""
    try:
        found = path.stat()
    except OSError as error:
        raise SpecError(f"image.path: {path}: {error.strerror}: name a file that can be read") from error
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "no regular file"
        raise SpecError(f"image.path: {path}: is {kind}: name the file of a picture")
    if not 0 < found.st_size <= MOST_BYTES:
        problem = f"has {found.st_size:,} bytes, more than {MOST_BYTES:,}" if found.st_size else "is empty"
        raise SpecError(f"image.path: {path}: {problem}: save the picture anew")


def _decode(path: Path) -> Image.Image:
    """The RGB image in a file; a SpecError holds only what follows the path."""
    try:
        with Image.open(path, formats=_FORMATS) as image:
            width, height = image.size
            if not 0 < width * height <= MOST_PIXELS:
                raise SpecError(f"has {width} x {height} pixels, of {MOST_PIXELS:,} at most: save it in another size")
            image.load()
            turn = _TURNS.get(_orientation(image))
            return to_rgb(image) if turn is None else to_rgb(image).transpose(turn)
    except _BOMBS as error:
        raise SpecError(f"has more than {MOST_PIXELS:,} pixels: save it smaller") from error
    except UnidentifiedImageError as error:
        raise SpecError(f"is no picture in a format that is read ({', '.join(_FORMATS)}): save it as PNG") from error
    except PermissionError as error:
        raise SpecError("may not be read: give yourself permission (chmod u+r)") from error
    except MemoryError as error:
        raise SpecError(f"takes more than {MOST_MEMORY:,} bytes of memory to decode: save it anew as PNG") from error
    except _BROKEN as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SpecError(f"is damaged or cut off ({reason}): save it anew as PNG") from error


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation; damaged EXIF says nothing, as in any viewer."""
    try:
        return int(image.getexif().get(0x0112, 1))
    except _BROKEN:
        return 1


def _main() -> None:
    """Decode the picture that the command line names: its size and pixels to stdout, or a sentence to stderr.

    Behind its path stands how many seconds of the processor it may take.
    """
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has no limits, macOS not all of them
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[2]), int(sys.argv[2])))
        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    try:
        image = _decode(Path(sys.argv[1]))
    except SpecError as error:
        sys.stderr.write(str(error))
        sys.exit(_REFUSED)
    sys.stdout.buffer.write(b"%d %d\n" % image.size)
    for top in range(0, image.height, 256):  # in strips: the packed pixels of a whole picture are 150 MB more
        sys.stdout.buffer.write(image.crop((0, top, image.width, min(top + 256, image.height))).tobytes())


if __name__ == "__main__":
    _main()
