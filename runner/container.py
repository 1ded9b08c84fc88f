"""What running in a container asks for: results that outlive it, a token that comes in a file."""

import os
from pathlib import Path

from runner.errors import SetupError

MOUNTS = Path("/proc/self/mountinfo")
GONE_WITH_CONTAINER = {"overlay", "tmpfs", "ramfs"}


def inside_image() -> bool:
    """Whether this is the project's own image, which says so in its environment."""
    return bool(os.environ.get("DEGRADE_IMAGE"))


def read_token_file() -> None:
    """Take the Hub's token from the file that HF_TOKEN_FILE names, unless HF_TOKEN is set.

    Raises:
        SetupError: the file cannot be read or holds no text.
    """
    path = os.environ.get("HF_TOKEN_FILE")
    if not path or os.environ.get("HF_TOKEN"):
        return
    try:
        token = Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise SetupError(f"HF_TOKEN_FILE: {path}: {error.strerror}, as user {os.getuid()}") from None
    except UnicodeDecodeError:
        raise SetupError(f"HF_TOKEN_FILE: {path}: is not text") from None
    if not token:
        raise SetupError(f"HF_TOKEN_FILE: {path}: is empty")
    os.environ["HF_TOKEN"] = token


def check_results_stay(results: Path) -> None:
    """Refuse to write results that vanish with the container.

    Raises:
        SetupError: this is the image, and no folder of the host is mounted there.
    """
    if inside_image() and filesystem_of(results.resolve(), MOUNTS.read_text()) in GONE_WITH_CONTAINER:
        raise SetupError(
            f"{results}: nothing is mounted there, so the results would vanish with the container. "
            f"Give it a folder: docker run -v ./results:{results.resolve()} ..."
        )


def filesystem_of(path: Path, mounts: str) -> str:
    """The type of the file system that holds an absolute path, from the text of /proc/self/mountinfo (proc(5))."""
    found, type_ = Path("/"), "unknown"
    for line in mounts.splitlines():
        place, _, rest = line.partition(" - ")
        point = Path(_unescape(place.split()[4]))
        # A later mount on the same point hides the earlier one.
        if path.is_relative_to(point) and len(point.parts) >= len(found.parts):
            found, type_ = point, rest.split()[0]
    return type_


def _unescape(text: str) -> str:
    """Octal escapes of spaces, tabs, newlines and backslashes undone."""
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, char)
    return text
