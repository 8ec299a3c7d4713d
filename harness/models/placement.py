"""Where the weights of a model go: one device, or spread over several, the CPU's memory and the disk, by accelerate."""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from harness.errors import UsageError, near

__all__ = ["DISK_IS_FULL", "Placement", "Where", "read_device_map", "read_max_memory", "require_device"]

_STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")
DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Placement:
    """Where the weights go; accelerate's meanings.

    Attributes:
        device: one device for all; ``auto`` spreads them; None for an accelerator where there is one, else the CPU.
        device_map: ``auto``, ``balanced``, ``balanced_low_0``, ``sequential``, one device, or pairs of a module and its
            device, ``cpu`` or ``disk``; instead of ``device``.
        max_memory: pairs of a device (its number, or ``cpu``) and the bytes that it holds at most, such as ``10GiB``.
        offload_folder: where weights go that lie on disk and not in the files of the checkpoint as they are.
    """

    device: str | None = None
    device_map: str | tuple[tuple[str, str], ...] | None = None
    max_memory: tuple[tuple[str, str], ...] | None = None
    offload_folder: str | None = None

    @classmethod
    def of(
        cls,
        device: str | None = None,
        *,
        device_map: str | Mapping[str, object] | None = None,
        max_memory: str | Mapping[Any, object] | None = None,
        offload_folder: str | Path | None = None,
    ) -> Placement:
        """A placement from what a user gave, checked as far as can be without the model.

        Args:
            device: as :attr:`device`.
            device_map: as :attr:`device_map`; pairs as a mapping, as ``module=device,...``, or in a JSON file.
            max_memory: as :attr:`max_memory`; pairs as a mapping, or as ``device=bytes,...``.
            offload_folder: as :attr:`offload_folder`; made where it is not there.

        Raises:
            UsageError: two of them do not go together, or one cannot be read or used.
        """
        if device is not None and device_map is not None:
            raise UsageError(f"device is {device} and device_map {device_map}; give one of them")
        spread = "auto" if device == "auto" else device_map
        for name, value in (("max_memory", max_memory), ("offload_folder", offload_folder)):
            if value is not None and spread is None:
                raise UsageError(f"{name} is {value} without device_map, which it belongs to; give device_map auto")
        require_device(device)
        return cls(
            device,
            None if device_map is None else read_device_map(device_map),
            None if max_memory is None else read_max_memory(max_memory),
            None if offload_folder is None else _made(Path(offload_folder)),
        )

    @property
    def spread(self) -> bool:
        """Whether accelerate is to place the weights."""
        return self.device_map is not None or self.device == "auto"

    @property
    def arguments(self) -> dict[str, Any]:
        """What transformers is given; nothing where the model is loaded in one piece."""
        if not self.spread:
            return {}
        named = (
            self.device_map if isinstance(self.device_map, str) or self.device_map is None else dict(self.device_map)
        )
        memory = {int(key) if key.isdecimal() else key: size for key, size in self.max_memory or ()}
        given = {"max_memory": memory or None, "offload_folder": self.offload_folder}
        return {"device_map": "auto" if named is None else named} | {k: v for k, v in given.items() if v is not None}

    def require_modules(self, model: nn.Module, name: str) -> None:
        """See that a map names modules of the model; transformers takes any name without a word.

        Args:
            model: the model, which may have no values yet.
            name: what errors call it.

        Raises:
            UsageError: one is not there.
        """
        if self.device_map is None or isinstance(self.device_map, str):
            return
        known = {module for module, _ in model.named_modules()} | {key for key, _ in model.named_parameters()}
        for module, _ in self.device_map:
            if module not in known:
                raise UsageError(f"device_map: '{module}' is not a module of {name}{near(module, sorted(known))}")


Where = str | Placement | None
"""A device by its name, or more."""


def read_device_map(given: str | Mapping[str, object]) -> str | tuple[tuple[str, str], ...]:
    """A device map as a user gives it: a name, pairs, or a JSON file of pairs.

    Raises:
        UsageError: it cannot be read, or names a device that is not there.
    """
    if isinstance(given, str) and given.endswith(".json"):
        given = _from_file(Path(given))
    if isinstance(given, str) and "=" not in given:
        if given not in _STRATEGIES:
            _require_place(
                given, f"device_map '{given}'", f"{', '.join(_STRATEGIES)}, MODULE=DEVICE,... or a JSON file"
            )
        return given
    pairs = _pairs(given, "device_map", "MODULE=DEVICE")
    for module, place in pairs:
        if place != "disk":
            _require_place(place, f"device_map: device '{place}' of '{module}'", "a device of this machine, or disk")
    return pairs


def _from_file(path: Path) -> Mapping[str, object]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"device_map: {path} cannot be read ({reason}); give a JSON file of modules and devices"
        ) from error
    if not isinstance(found, Mapping):
        raise UsageError(
            f"device_map: {path} holds a {type(found).__name__}, expected an object of modules and devices"
        )
    return found


def read_max_memory(given: str | Mapping[Any, object]) -> tuple[tuple[str, str], ...]:
    """What devices hold at most, as a user gives it.

    Raises:
        UsageError: a size or a device cannot be read, or the device is not there.
    """
    from accelerate.utils.modeling import convert_file_size_to_int

    pairs = _pairs(given, "max_memory", "DEVICE=BYTES")
    for place, size in pairs:
        try:
            bytes_ = int(size) if size.isdecimal() else convert_file_size_to_int(size)
        except ValueError:
            bytes_ = 0
        if bytes_ <= 0:
            raise UsageError(
                f"max_memory: '{size}' of {place} is no size; give bytes, or a size such as 10GiB or 500MB"
            )
        known = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
        if place not in ("cpu", "mps", "disk") and not (place.isdecimal() and int(place) < known):
            here = ", ".join([*map(str, range(known)), "cpu"])
            raise UsageError(f"max_memory: '{place}' is no device of this machine; give {here}")
    return tuple((place, str(int(size)) if size.isdecimal() else size) for place, size in pairs)


def _pairs(given: str | Mapping[Any, object], what: str, form: str) -> tuple[tuple[str, str], ...]:
    if not isinstance(given, str):
        return tuple((str(key), str(value)) for key, value in given.items())
    parts = [part.strip().partition("=") for part in given.split(",")]
    for key, sign, value in parts:
        if not sign or not key or not value:
            raise UsageError(f"{what}: '{key}{sign}{value}' is not {form}; give {form},...")
    return tuple((key.strip(), value.strip()) for key, _, value in parts)


def _made(folder: Path) -> str:
    try:
        folder.expanduser().mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"offload_folder: {folder} cannot be made ({error.strerror}); give a folder to write to"
        ) from error
    return str(folder.expanduser())


def require_device(device: str | None) -> None:
    """See that a tensor can be put on a device; ``auto`` and None are any.

    Raises:
        UsageError: it cannot.
    """
    if device is not None and device != "auto":
        _require_place(device, f"device '{device}'", "cpu, cuda, mps or auto")


def _require_place(device: str, what: str, others: str) -> None:
    try:
        torch.empty(0, device=int(device) if device.isdecimal() else device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch that was built without the device
        reason = str(error).splitlines()[0]
        raise UsageError(f"{what} cannot be used ({reason}); give {others}") from error
