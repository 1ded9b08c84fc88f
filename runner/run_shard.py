"""A shard of a study: the units of work that one of several separate runs takes, by a hash of what is damaged."""

import hashlib
import re
from collections.abc import Iterable
from typing import Self

from attrs import frozen

from runner.errors import SpecError
from runner.run_plan import Condition
from runner.spec_methods import Method

MOST_SHARDS = 1_000_000


@frozen
class Shard:
    """One of `total` parts of every study, counted from 1."""

    index: int
    total: int

    @classmethod
    def parse(cls, text: str, place: str = "--shard") -> Self:
        """The shard that `2/3` means; `place` is where that stands.

        Raises:
            SpecError: it means none.
        """
        numbers = re.fullmatch(r"([0-9]{1,7})/([0-9]{1,7})", text.strip())
        index, total = map(int, numbers.groups()) if numbers else (0, 0)
        if not 1 <= index <= total <= MOST_SHARDS:
            raise SpecError(
                f"{place} {text}: write I/N, the part I of N, with 1 <= I <= N <= {MOST_SHARDS:,}: 1/3, 2/3 and 3/3 "
                "are the parts of a study in three"
            )
        return cls(index, total)

    def __str__(self) -> str:
        return f"{self.index}/{self.total}"

    @property
    def in_a_name(self) -> str:
        """How the name of a file says it."""
        return f"shard-{self.index}-of-{self.total}"

    def takes(self, condition: Condition) -> bool:
        """Whether the damaged model of a condition is one of this shard's.

        That depends on `Condition.weights` alone: no other sweep, level or repeat moves it to another shard.
        """
        return _hash(*condition.weights) % self.total == self.index - 1


def of_shard(conditions: Iterable[Condition], shard: Shard | None) -> list[Condition]:
    """Those conditions that a shard takes; without one, all."""
    return [condition for condition in conditions if shard is None or shard.takes(condition)]


def _hash(group: str, method: Method, level: float, seed: int | None) -> int:
    """64 bits of SHA-256 over what damaged weights are a function of, the level as the shortest decimals that are it.

    The text that is hashed does not change: a shard that is resumed by a later release takes the same units.
    """
    text = "\0".join(["shard", group, method, repr(float(level)), "none" if seed is None else str(seed)])
    return int.from_bytes(hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:8], "big")
