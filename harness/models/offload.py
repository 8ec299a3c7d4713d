"""Weights that accelerate keeps in the CPU's memory or on disk, and fetches for each pass of their module.

Such a parameter has no values between passes. Here they are read from where they lie, one parameter at a time; and
while they are to change, their module holds them in memory and nothing is fetched over them. What lies elsewhere is
never written: when the module lets go of its values, they are again, bit by bit, those of before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from harness.errors import ModelError

if TYPE_CHECKING:
    from accelerate.hooks import AlignDevicesHook
    from transformers import PreTrainedModel

__all__ = ["Weights", "call_with", "count_parameters", "device_of", "is_fetched", "resident", "total_bytes", "value_of"]


def is_fetched(model: nn.Module, name: str) -> bool:
    """Whether a parameter lies elsewhere, and is fetched for each pass of its module."""
    return _fetching(model.get_submodule(name.rpartition(".")[0])) is not None


def value_of(module: nn.Module, leaf: str, tensor: Tensor, *, where: torch.device | None = None) -> Tensor:
    """A tensor of a module with its values, fetched where it has none.

    Args:
        module: the module that it stands in.
        leaf: its name there.
        tensor: the tensor as the module holds it.
        where: the device for what is fetched; by default the one on which the module runs.

    Raises:
        ModelError: its values lie nowhere, or where they lie cannot be read.
    """
    hook = _fetching(module)
    if not tensor.is_meta or hook is None:
        return tensor
    try:
        found: Tensor = hook.weights_map[leaf]
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"a weight '{leaf}' that was put on disk cannot be read ({reason}); load the model again"
        ) from error
    return found.detach().to(hook.execution_device if where is None else where, tensor.dtype)


def device_of(module: nn.Module) -> torch.device:
    """The device on which a module with parameters runs."""
    first = next(module.parameters())
    owner = next(m for m in module.modules() if any(p is first for p in m.parameters(recurse=False)))
    hook = _fetching(owner)
    if not first.is_meta or hook is None:
        return first.device
    device = hook.execution_device
    return torch.device(device) if not isinstance(device, int) else torch.device(_accelerator(), device)


def _accelerator() -> str:
    found = torch.accelerator.current_accelerator()
    return "cpu" if found is None else found.type


@contextmanager
def resident(model: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Let the modules of some parameters hold their values; afterwards they are fetched again as before.

    Args:
        model: the model.
        names: parameters.

    Raises:
        ModelError: a parameter is tied to one that would not change with it.
    """
    with ExitStack() as stack:
        for owner in dict.fromkeys(name.rpartition(".")[0] for name in names):
            module = model.get_submodule(owner)
            hook = _fetching(module)
            if hook is not None:
                _require_untied(model, owner, module)
                stack.enter_context(_held(module, hook))
        yield


@contextmanager
def _held(module: nn.Module, hook: AlignDevicesHook) -> Iterator[None]:
    away = {name: parameter for name, parameter in module.named_parameters(recurse=False) if parameter.is_meta}
    for name, parameter in away.items():
        value = value_of(module, name, parameter).clone()  # where they lie in the CPU's memory they are not written
        module._parameters[name] = nn.Parameter(value, requires_grad=parameter.requires_grad)
    hook.offload = False
    try:
        yield
    finally:
        hook.offload = True
        module._parameters.update(away)


def _fetching(module: nn.Module) -> AlignDevicesHook | None:
    """What fetches the tensors of a module for each of its passes; None where they are in place."""
    from accelerate.hooks import AlignDevicesHook, SequentialHook

    hook = getattr(module, "_hf_hook", None)
    each = hook.hooks if isinstance(hook, SequentialHook) else [hook]
    return next((one for one in each if isinstance(one, AlignDevicesHook) and one.offload), None)


def _require_untied(model: nn.Module, owner: str, module: nn.Module) -> None:
    tied: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    for name, _ in module.named_parameters(recurse=False):
        full = f"{owner}.{name}"
        if full in tied or full in tied.values():
            raise ModelError(
                f"'{full}' is tied to another weight and lies on disk or in the CPU's memory, where only one of them "
                "would change; keep it on a device, or edit other weights"
            )


def call_with(model: nn.Module, held: Mapping[str, Tensor], *args: Any, **inputs: Any) -> Any:
    """What a module gives with some parameters in place of its own, which are not fetched over them.

    Args:
        model: the module.
        held: parameters by their names in it.
        args: what it is given.
        inputs: what it is given by name.
    """
    with resident(model, held):
        return functional_call(model, dict(held), args, inputs)


class Weights(Mapping[str, Tensor]):
    """Named tensors of a model with their values, each fetched when it is asked for, to the CPU.

    Attributes:
        model: the model.
        tensors: the tensors as its modules hold them.
        fetched: the names of those that are fetched; each time they lie at another place in memory.
    """

    def __init__(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        self.model, self.tensors = model, tensors
        self.fetched = frozenset(name for name, tensor in tensors.items() if tensor.is_meta)

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.tensors[name]
        if name not in self.fetched:
            return tensor
        owner, _, leaf = name.rpartition(".")
        return value_of(self.model.get_submodule(owner), leaf, tensor, where=torch.device("cpu"))

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def count_parameters(model: PreTrainedModel) -> int:
    """The numbers that a model holds; of tied weights, which are two while they lie elsewhere, those of one."""
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    return sum(p.numel() for name, p in model.named_parameters() if not (p.is_meta and name in tied))


def total_bytes(tensors: Mapping[str, Tensor]) -> int:
    """The bytes of some tensors; none is fetched for that.

    Args:
        tensors: the tensors.
    """
    held = tensors.tensors if isinstance(tensors, Weights) else tensors
    return sum(tensor.nbytes for tensor in held.values())
