"""The last fields of a line, by which a record proves itself: the version of its schema, and a checksum of its bytes.

A line of ours ends in `, "schema_version": 2, "crc32": "89abcdef"}`, where the checksum is that of all bytes before
`, "crc32"`: to check it, nothing has to be parsed or written again. CRC-32 as in gzip finds every error of up to three
bits in a line of up to 11 kB, and every burst of up to 32 bits; of all others it misses one in 2^32. CRC-32C finds more
in short lines (five bits up to 655 bytes), but would be a further dependency. Records of version 1 have neither field.

The rule for the checksum is the same for every version, so that what is newer can be told from what is damaged.
"""

import json
import re
import zlib
from collections.abc import Mapping
from typing import Any

SCHEMA_VERSION = 2
VERSION, CHECKSUM = "schema_version", "crc32"
ENTRY = b"\n[[provenance.evidence]]\n"  # what an append to a sidecar begins with
SEAL_LINE = re.compile(rb"^# crc32 ([0-9a-f]{8})\n", re.MULTILINE)
_SEAL_LENGTH = len(', "crc32": "89abcdef"}')


def sealed(record: Mapping[str, Any], version: int = SCHEMA_VERSION) -> bytes:
    """A record as one line of JSON that ends with its version and checksum.

    Raises:
        ValueError: it holds what JSON has not: infinity, or "not a number".
    """
    body = as_line({**record, VERSION: version})[:-1]
    return body + _seal_of(body)


def as_line(record: Mapping[str, Any]) -> bytes:
    """A record as JSON on one line; a lone surrogate, which UTF-8 has not, is written as JSON's escape of it."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode(errors="backslashreplace")


def take_seal(record: dict[str, Any]) -> dict[str, Any]:
    """Take version and checksum, as far as they are there, out of a record."""
    seal = {}
    for key in (VERSION, CHECKSUM):
        if key in record:
            seal[key] = record.pop(key)
    return seal


def is_intact(line: bytes) -> bool:
    """Whether a line ends with the checksum of what stands before it."""
    return line[-_SEAL_LENGTH:] == _seal_of(line[:-_SEAL_LENGTH])


def sealed_text(text: str) -> str:
    """A part of a sidecar, and behind it the line of its checksum."""
    return f"{text}# crc32 {zlib.crc32(text.encode()):08x}\n"


def spoilt_parts(data: bytes) -> list[int]:
    """The first lines, counted from 1, of the parts of a sidecar whose checksum does not fit or is missing."""
    spoilt, start = [], 0
    for seal in re.finditer(SEAL_LINE, data):
        part = data[start : seal.start()]
        if seal[1] != b"%08x" % zlib.crc32(part):
            spoilt.append(1 + data[:start].count(b"\n"))
        start = seal.end()
    return [*spoilt, *([1 + data[:start].count(b"\n")] if data[start:] else [])]


def without_torn_end(data: bytes) -> bytes:
    """A sidecar up to its last whole part, where a crash in an append tore what follows; else all of it."""
    whole = data.partition(b"\0")[0]
    at, seal = len(whole), None
    while seal is None and (at := whole.rfind(b"\n# crc32 ", 0, at)) >= 0:
        seal = SEAL_LINE.match(whole, at + 1)
    if seal is None:
        return data
    rest = whole[seal.end() :]
    torn = len(whole) < len(data) or rest.startswith(ENTRY) or ENTRY.startswith(rest)
    return whole[: seal.end()] if torn else data


def _seal_of(body: bytes) -> bytes:
    return b', "crc32": "%08x"}' % zlib.crc32(body)
