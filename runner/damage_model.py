"""A model under damage, one condition at a time, and what the damage did."""

from collections.abc import Callable, Sequence
from typing import Self

from runner.damage_backend import DamageBackend, make_backends
from runner.damage_digest import bind
from runner.damage_effect import DamageEffect, add, evidence
from runner.damage_methods import restore, restore_protected
from runner.spec_choice import weights_key
from runner.spec_methods import METHODS, Method, is_no_op
from runner.target_lesion import Lesion
from runner.target_tensor import Target

NOTHING = Lesion(targets=())


class DamagedModel:
    """A model whose groups are damaged one condition at a time; leaving the `with` block restores every bit."""

    def __init__(self, lesions: Callable[[str], Lesion]) -> None:
        """`lesions` gives what a `param_group_name` means in this model."""
        self._find_lesion = lesions
        self._group, self._lesion = "", NOTHING
        self._backends: list[DamageBackend] = []
        self._state: tuple[str, Method, float, int | None] | None = None
        self._digest = ""
        self._evidence: DamageEffect | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    @property
    def targets(self) -> Sequence[Target]:
        """Those of the group that is damaged."""
        return self._lesion.targets

    @property
    def baseline_places(self) -> list[str]:
        """Where the baseline of the group lies: `cuda:0`, `cpu`, or `pinned` memory that the GPU reads directly."""
        places = {"pinned" if t.is_pinned() else str(t.device) for backend in self._backends for t in backend.baseline}
        return sorted(places)

    def damage(self, group: str, method: Method, level: float, seed: int) -> str:
        """Bring the model into a condition and return the digest of the group's tensors.

        Conditions of the same weights (all repeats of a deterministic level) are damaged once.
        """
        state = weights_key(group, method, level, seed)
        if state == self._state:
            return self._digest
        self._state = None  # should damage be interrupted, the next condition must not trust what is there
        if group != self._group:
            self._switch_group(group)
        self._write(method, level, seed)
        self._digest, self._evidence = self._read_digest(), None
        self._state = state
        return self._digest

    def _write(self, method: Method, level: float, seed: int) -> None:
        """Damage the units that the condition chooses; what is protected stays whole."""
        lesion, chosen, options = self._lesion, None, self._lesion.options
        if not is_no_op(method, level) and (tables := lesion.tables(method, level, seed)) is not None:
            chosen = dict(zip(map(id, lesion.targets), tables, strict=True))
            level, options = lesion.told(method, level)
        for backend in self._backends:
            own = [chosen[id(target)] for target in backend.targets] if chosen else None
            backend.damage(method, level, seed, options=options, chosen=own)
            restore_protected(backend.targets, backend.baseline)

    def evidence(self, method: Method) -> DamageEffect:
        """What the damage that is there now did; measured once, however many conditions share it."""
        if self._evidence is None:
            sums = add(backend.sums() for backend in self._backends)
            self._evidence = evidence(self.targets, sums, count_values=METHODS[method].discrete)
        return self._evidence

    def _read_digest(self) -> str:
        prints = {
            target.name: (target.weight, number)
            for backend in self._backends
            for target, number in zip(backend.targets, backend.fingerprints(), strict=True)
        }
        # In the order of the targets, whatever device they are on; two copies of a tied tensor are one.
        return bind([(name, *prints[name]) for name in dict.fromkeys(target.name for target in self.targets)])

    def restore(self) -> None:
        """Make every weight what it was; the next condition is damaged anew."""
        self._state = None
        for backend in self._backends:
            restore(backend.targets, backend.baseline)

    def release(self) -> None:
        """Make every weight what it was, and keep no baseline."""
        self.restore()
        self._group, self._lesion, self._backends = "", NOTHING, []

    def _switch_group(self, group: str) -> None:
        """Make another group the one that is damaged."""
        self.release()
        self._lesion = self._find_lesion(group)
        self._backends = make_backends(self.targets)
        self._group = group
