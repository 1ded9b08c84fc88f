"""What running in a container asks for: results that outlive it, a token that comes in a file."""

import os
from pathlib import Path

from runner.errors import SetupError

MOUNTS = Path("/proc/self/mountinfo")
LEFT_BY_COPYING = " \t\r\n\v\f\"'\ufeff"  # blanks, quotes, a byte order mark
UNLIMITED = 2**60  # version 1 has no word for it, but a number just below 2**63
GONE_WITH_CONTAINER = {"overlay", "tmpfs", "ramfs"}


def inside_image() -> bool:
    """Whether this is the project's own image, which says so in its environment."""
    return bool(os.environ.get("DEGRADE_IMAGE"))


def read_token() -> None:
    """Make HF_TOKEN what a request can carry: without what copying left around it; from HF_TOKEN_FILE if it is not set.

    Raises:
        SetupError: the file cannot be read or holds no text, or the token is none.
    """
    token, name = os.environ.pop("HF_TOKEN", ""), "HF_TOKEN"
    path = os.environ.get("HF_TOKEN_FILE")
    if path and not token.strip():
        token, name = _read_token_file(path), f"HF_TOKEN_FILE: {path}"
    bare = token.strip(LEFT_BY_COPYING)
    if token.strip() and not bare:
        raise SetupError(f"{name}: holds quotes and no token")
    if not all("!" <= char <= "~" for char in bare):
        raise SetupError(f"{name}: holds a space or a character that no token has. Copy it again.")
    if bare:
        os.environ["HF_TOKEN"] = bare


def _read_token_file(path: str) -> str:
    try:
        token = Path(path).read_text(encoding="utf-8-sig").strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not text"
        raise SetupError(f"HF_TOKEN_FILE: {path}: {reason}, as user {os.getuid()}") from None
    if not token:
        raise SetupError(f"HF_TOKEN_FILE: {path}: is empty")
    return token


def memory_limit(root: Path = Path("/")) -> int | None:
    """The bytes that the kernel lets this process have, by control groups of either version; None without a limit.

    A group is limited by all groups above it (cgroups(7)). Inside a container the paths of /proc/self/cgroup may be
    those of the host, and its own group is then mounted at the top.
    """
    limits = []
    for line in _lines(root / "proc/self/cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        file = "memory.limit_in_bytes" if controllers else "memory.max"
        folder = top / os.path.normpath(f"/{group}").lstrip("/")
        for place in (folder, *folder.parents):
            if place.is_relative_to(top):
                limits += [int(text) for text in _lines(place / file) if text.isdigit()]
    return min((limit for limit in limits if limit < UNLIMITED), default=None)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []


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
