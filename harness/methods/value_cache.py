"""Values that were optimised once, kept on disk: editors that differ in what they write alone share them.

What is kept is what was found for edits that were optimised side by side, as it was found, so that an edit is bitwise
the same with and without the cache. It is known by all that decides it: the model as it was then, the rows of tokens
(in which edit, context templates and tokenizer are contained), the objective, the device and the code. How a value is
scaled afterwards (an anchor) and how it is written (``lam``, a null space, RECT, PRUNE) is no part of it.

:func:`harness.methods.value.optimise` asks the cache that :func:`values_from` has put in place, and none otherwise.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import TypedDict

from harness.errors import DataError, UsageError
from harness.io.cache import cache_folder, in_cache, share
from harness.io.files import json_sha256, require_writable
from harness.io.locks import made_once
from harness.io.tensor_file import read_tensors, require_manifest, write_tensors
from harness.methods.value_forward import Way, fastest_forward
from harness.methods.value_rows import Objective, PreparedEdit
from harness.models.guard import is_hooked
from harness.models.lm import LM
from harness.models.rounding import rounding_of
from harness.models.weight_hashes import WeightHashes

__all__ = ["DECISIVE", "Optimised", "ValueCache", "cache_in_use", "portion_key", "values_folder", "values_from"]

log = logging.getLogger(__name__)

KIND = "optimised values"
FORMAT = 1

DECISIVE = (
    "editing/directions.py",
    "methods/alignment.py",
    "methods/value.py",
    "methods/value_forward.py",
    "methods/value_rows.py",
    "models/activations.py",
    "models/arch.py",
    "models/backpack.py",
    "models/cache_layers.py",
    "models/experts.py",
    "models/lm.py",
    "models/packing.py",
)
"""The modules that decide a value, once its rows of tokens are known."""

_AFTERWARDS = ("anchor", "anchor_skip", "budget")
"""Of an objective: what is done to a value that was found, and how many edits are optimised side by side."""


class _Manifest(TypedDict):
    """What a file says besides its kind."""

    key: str
    edits: int
    seconds: float


@dataclass(frozen=True, eq=False)
class Optimised:
    """What was found for edits that were optimised side by side, in their order.

    Attributes:
        start: what is changed, ``[edits, parts * d]``.
        delta: its change, ``[edits, parts * d]``.
        losses: of each edit ``[evaluations, 4]``.
        keys: what the down-projection reads, ``[edits, 2, f]``, see :class:`harness.methods.value.Values`.
        outputs: what it gives, ``[edits, 2, d]``.
        seconds: how long it took.
    """

    start: Float[Tensor, "edits parts_d"]
    delta: Float[Tensor, "edits parts_d"]
    losses: Sequence[Float[Tensor, "_ 4"]]
    keys: Float[Tensor, "edits 2 f"]
    outputs: Float[Tensor, "edits 2 d"]
    seconds: float = 0.0

    def tensors(self) -> dict[str, Tensor]:
        """As a file holds them: the losses of all edits one below the other, and how many each has."""
        counts = torch.tensor([len(rows) for rows in self.losses])
        plain = {name: getattr(self, name) for name in ("start", "delta", "keys", "outputs")}
        return {**plain, "losses": torch.cat(list(self.losses)), "evaluations": counts}

    @classmethod
    def of(cls, tensors: dict[str, Tensor], *, seconds: float, device: torch.device) -> Optimised:
        """What :meth:`tensors` gave, on a device.

        Args:
            tensors: by name.
            seconds: how long the optimisation took.
            device: where they are placed.
        """
        placed = {name: tensor.to(device) for name, tensor in tensors.items() if name != "evaluations"}
        losses = torch.split(placed.pop("losses"), tensors["evaluations"].tolist())
        return cls(**placed, losses=losses, seconds=seconds)


@dataclass(eq=False)
class ValueCache:
    """Where values are kept, and how many came from there.

    Attributes:
        folder: where; None keeps nothing and only counts.
        found: how many values were taken from the cache.
        optimised: how many were not.
        seconds: how long it once took to find those that were taken.
        weights: the hashes of the weights of each model.
        ways: how each model is run, which is tried anew for rows unlike those that it was tried on.
    """

    folder: Path | None
    found: int = 0
    optimised: int = 0
    seconds: float = 0.0
    weights: dict[LM, WeightHashes] = field(default_factory=dict)
    ways: dict[tuple[object, ...], Way] = field(default_factory=dict)

    def counts(self) -> dict[str, float]:
        """How many values were found and optimised, and how long those that were found once took."""
        return {"found": self.found, "optimised": self.optimised, "seconds": round(self.seconds, 3)}

    def identity(self, lm: LM, objective: Objective) -> str | None:
        """What decides values besides their rows, as a hash; None where it cannot be said, or nothing is kept.

        Args:
            lm: the model, with whatever patch it carries.
            objective: what is optimised.

        Raises:
            UsageError: the folder cannot be written to; told before anything is optimised.
        """
        # What a hook does, and to which tokens, is in no hash.
        if self.folder is None or is_hooked(lm.model):
            return None
        if not self.weights:
            require_writable(self.folder, "set HARNESS_CACHE to a folder of yours")
        wanted = {name: value for name, value in asdict(objective).items() if name not in _AFTERWARDS}
        wanted["terms"] = [term.identity() for term in objective.terms]
        parts = {
            "format": FORMAT,
            "weights": self.weights.setdefault(lm, WeightHashes()).of(lm),
            "model": _form(lm),
            "objective": wanted,
            "machine": rounding_of(lm.device),
            "code": _code(),
            "transformers": version("transformers"),
        }
        return json_sha256(parts)

    def way(self, lm: LM, prepared: Sequence[PreparedEdit], objective: Objective) -> Way:
        """How the model is run: as it was for earlier edits, or what :func:`fastest_forward` finds.

        Args:
            lm: the model.
            prepared: the rows of each edit, whole.
            objective: where the change stands.
        """
        if is_hooked(lm.model):
            return fastest_forward(lm, prepared, objective)
        asked = (lm, objective.layer, objective.seam, objective.loss_layer, lm.dtype)
        known = self.ways.get(asked)
        if known is None or not known.covers(prepared):
            known = self.ways[asked] = fastest_forward(lm, prepared, objective).widened(known)
        return known

    def take(self, key: str | None, lm: LM) -> Optimised | None:
        """What is kept under a key, on the model's device; None where there is nothing that can be used."""
        if self.folder is None or key is None or not in_cache(path := self._path(key)):
            return None
        try:
            head, tensors = read_tensors(path, KIND, FORMAT)
            require_manifest(path, _Manifest, head)
            if head["key"] != key:
                raise DataError(f"{path}: holds values of something else; delete the file")
            found = Optimised.of(tensors, seconds=head["seconds"], device=lm.device)
        except DataError as error:
            log.warning("%s; these values are optimised again", str(error).partition("; ")[0])
            return None
        self.found += len(found.delta)
        self.seconds += found.seconds
        return found

    def making(self, key: str | None) -> AbstractContextManager[bool]:
        """While values are optimised: another process that needs the same waits; says whether this one has waited."""
        return nullcontext(False) if self.folder is None or key is None else made_once(self._path(key))

    def keep(self, key: str | None, made: Optimised) -> None:
        """Keep what was optimised; where it cannot be written, a line says so, and the values are used all the same."""
        self.optimised += len(made.delta)
        if self.folder is None or key is None:
            return
        about = {"key": key, "edits": len(made.delta), "seconds": round(made.seconds, 3)}
        try:
            write_tensors(self._path(key), kind=KIND, version=FORMAT, manifest=about, tensors=made.tensors())
        except UsageError as error:
            log.warning("%s; these values are not kept", str(error).partition("; ")[0])
            return
        share(self._path(key))

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{key}.safetensors"


def values_folder() -> Path:
    """Where values are kept."""
    return cache_folder() / "values"


_IN_USE: ContextVar[ValueCache | None] = ContextVar("values", default=None)


@contextmanager
def values_from(cache: ValueCache) -> Iterator[ValueCache]:
    """Take the values of every editor from a cache, and keep there what is not in it, while this lasts."""
    before = _IN_USE.set(cache)
    try:
        yield cache
    finally:
        _IN_USE.reset(before)


def cache_in_use() -> ValueCache:
    """The cache that :func:`values_from` has put in place; without one, a new one that keeps nothing."""
    return _IN_USE.get() or ValueCache(None)


def portion_key(identity: str | None, prepared: Sequence[PreparedEdit], way: str) -> str | None:
    """Under which key the values of edits that are optimised side by side are kept.

    Args:
        identity: what else decides them, see :meth:`ValueCache.identity`.
        prepared: the rows of each edit, as they are run.
        way: the name of the forward pass.
    """
    if identity is None:
        return None
    rows = [
        [one.edit.direction, [[row.ids, row.at] for row in one.rows], one.said, one.prefixes, one.rivals]
        for one in prepared
    ]
    return json_sha256({"besides": identity, "rows": rows, "way": way})


def _form(lm: LM) -> list[object]:
    """What decides a model's numbers besides its weights and the tokens that it reads."""
    config = lm.model.config.to_dict()
    kept = {key: value for key, value in config.items() if key not in ("_name_or_path", "transformers_version")}
    kinds = sorted({f"{type(module).__module__}.{type(module).__qualname__}" for module in lm.model.modules()})
    training = any(module.training for module in lm.model.modules())
    places = {name: value for name, value in vars(lm.arch).items() if name != "owner"}
    return [kept, getattr(lm.model.config, "_attn_implementation", None), kinds, training, places, lm.pad]


@functools.cache
def _code() -> str:
    """The sha256 of the modules that decide a value."""
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    for name in DECISIVE:
        digest.update(name.encode() + (root / name).read_bytes())
    return digest.hexdigest()
