"""Unpacks a file into the cache, or finds it there; with a second argument it looks at the copy."""

import sys
from pathlib import Path

from runner.model_unpacked import CHECKSUMS, copy_of

WEIGHTS = bytes(range(256)) * 64


def unpack(folder: Path) -> None:
    """What a library would write."""
    (folder / "weights").write_bytes(WEIGHTS)
    (folder / "config.json").write_text("{}")


copy = copy_of(Path(sys.argv[1]), "float32", unpack)
if copy is not None and sys.argv[2:]:
    assert (copy / "weights").read_bytes() == WEIGHTS
    assert {path.name for path in copy.iterdir()} == {"weights", "config.json", CHECKSUMS}
sys.stdout.write(f"{copy}\n")
