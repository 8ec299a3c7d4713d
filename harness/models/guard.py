"""What decides a model's numbers, noted before somebody works on the model and compared afterwards.

An editor is given the model itself. What it may leave behind, and what then changes every later number, is more than
weights: a hook, a buffer that no checkpoint holds, an attribute such as ``eps``, a module in training mode, another
class of module, a head that is no longer the embedding, a gradient, a setting of the configuration, of generation or of
the tokenizer, a method of a class or a function of a library that is another one now. All of it is compared here, in
one place, for runs, sweeps, studies, the contract, and ``harness.edit``. What is said of torch for the whole process is
put back where an editor is asked (:mod:`harness.editing.made`).
"""

from __future__ import annotations

import hashlib
import json
import sys
import types
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks

from harness.errors import RestoreError
from harness.io.hashes import tensor_xxh3
from harness.models.lm import LM

__all__ = ["Guard", "is_hooked", "same_modules", "unchanged"]

_NAMED = 3
"""How many of the things that differ a message names."""

_LIBRARIES = ("transformers.", "accelerate.")
"""Hooks of theirs are set when a model is first used, and belong to it."""

_USE_OF_TOKENIZER = ("deprecation_warnings",)
"""What a tokenizer notes of itself while it is used."""

_METHODS = (types.FunctionType, staticmethod, classmethod, property)
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType)


@dataclass(frozen=True, eq=False)
class Guard:
    """A model as it was when :meth:`of` was called.

    Attributes:
        lm: the model.
        state: the fast hash of every parameter and of every buffer that a checkpoint holds, by name.
        rest: everything else that decides its numbers, by what a message calls it.
    """

    lm: LM
    state: Mapping[str, str]
    rest: Mapping[str, str] = field(repr=False)

    @classmethod
    def of(cls, lm: LM) -> Guard:
        """The model as it is now."""
        return cls(lm, lm.fast_hashes(), _rest(lm))

    def differing(self, weights: bool = True) -> list[str]:
        """What is not as it was, by name.

        Args:
            weights: whether parameters are looked at too, each of which is read whole.
        """
        state = self.lm.fast_hashes() if weights else {}
        found = _moved(self.state, state) if weights else []
        found += [name for name in state if name not in self.state and name not in found]  # private ones are saved, too
        rest = _moved(self.rest, _rest(self.lm))
        own = _written_by_passes(self.lm) if rest else set()
        return found + [name for name in rest if name not in own]

    def require(self, cure: str, *, weights: bool = True, before: str = "") -> None:
        """See that the model is what it was.

        Args:
            cure: what is to be done otherwise.
            weights: whether parameters are looked at too, each of which is read whole.
            before: before what it was otherwise, as the end of a sentence.

        Raises:
            RestoreError: it is not; names what differs.
        """
        found = self.differing(weights)
        if found:
            more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
            bitwise = "bitwise " if all(name in self.state for name in found) else ""
            was = f"is not {bitwise}what it was" if len(found) == 1 else f"are not {bitwise}what they were"
            raise RestoreError(f"{self.lm.name}: {', '.join(found[:_NAMED])}{more} {was}{before}; {cure}")


@contextmanager
def unchanged(lm: LM) -> Iterator[Guard]:
    """See that a model is the same afterwards, also after an exception.

    Yields:
        What it was.

    Raises:
        RestoreError: it is not; names what differs.
    """
    guard = Guard.of(lm)
    try:
        yield guard
    finally:
        guard.require("load the model again")


@contextmanager
def same_modules(model: nn.Module) -> Iterator[None]:
    """Put back every module of a model that was replaced, added or taken away, also after an exception."""
    children = {module: dict(module._modules) for module in model.modules()}
    try:
        yield
    finally:
        for module, kept in children.items():
            module._modules.clear()
            module._modules.update(kept)


def is_hooked(model: nn.Module) -> bool:
    """Whether hooks change what a forward pass of a model computes, those of the libraries themselves left out."""
    own = [(module._forward_hooks, module._forward_pre_hooks) for module in model.modules()]
    everywhere = (global_hooks._global_forward_hooks, global_hooks._global_forward_pre_hooks)
    return any(_hooks(hooks) for pair in (*own, everywhere) for hooks in pair)


def _moved(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The names of what differs."""
    new = [name for name in now if name not in before and not _is_note(name)]
    return [name for name, was in before.items() if now.get(name) != was] + new


def _is_note(new: str) -> bool:
    """Whether something new is a library's note of what it has done (a private attribute), or not used yet."""
    last = new.rpartition(".")[2]
    private = last.startswith("_") and not last.startswith("__") and " " not in new
    return private or new.startswith("the function ")


def _written_by_passes(lm: LM) -> set[str]:
    """What every pass of the model itself writes: a state that is kept for the next token (RecurrentGemma)."""
    own: set[str] = set()
    before = _rest(lm)
    for row in ([1, 2, 3], [4, 5]):
        ids = torch.tensor([[token % lm.vocabulary for token in row]], device=lm.device)
        try:
            with torch.no_grad():
                lm.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True)
        except Exception:  # what was left behind may be anything, also what no pass survives
            return own
        after = _rest(lm)
        own |= set(_moved(before, after))
        before = after
    return own


# --- what is noted ----------------------------------------------------------------------------------------------------


def _rest(lm: LM) -> dict[str, str]:
    """Everything but parameters and the buffers of a checkpoint."""
    found: dict[str, str] = {}
    for name, module in lm.model.named_modules():
        found |= _of_module(name or type(module).__name__, name, module)
    held = lm.model.state_dict().keys()
    for name, buffer in lm.model.named_buffers(remove_duplicate=False):
        if name not in held:
            found[f"the buffer {name}"] = tensor_xxh3(buffer)
    found |= _of_parameters(lm.model) | _of_classes(lm.model) | _of_configs(lm.model)
    found["a hook on all modules"] = str([_hooks(hooks) for hooks in _global_hooks()])
    found |= _plain("config", lm.model.config.to_dict())
    generation = getattr(lm.model, "generation_config", None)
    found |= _plain("generation_config", generation.to_dict() if generation is not None else {})
    return found | _of_tokenizer(lm.tokenizer)


def _of_module(shown: str, name: str, module: nn.Module) -> dict[str, str]:
    """Class, mode, hooks and attributes of one module."""
    prefix = f"{name}." if name else ""
    found = {f"the class of {shown}": f"{type(module).__module__}.{type(module).__qualname__}"}
    for kind, value in vars(module).items():
        if kind in ("_parameters", "_buffers", "_modules"):
            continue
        if kind.endswith("_hooks"):
            if hooks := _hooks(value):
                found[f"a hook on {shown}"] = found.get(f"a hook on {shown}", "") + kind + hooks
        elif kind.endswith(("_hooks_with_kwargs", "_hooks_always_called")):
            continue
        elif _hides_a_method(module, kind, value):
            found[f"the method {kind} of {shown}"] = _said(value)
        else:
            found[f"{prefix}{kind}"] = _said(value)
    return found


def _hides_a_method(owner: object, name: str, value: object) -> bool:
    """Whether a private attribute is called in place of what the class has under its name."""
    return name.startswith("_") and callable(value) and hasattr(type(owner), name)


def _of_parameters(model: nn.Module) -> dict[str, str]:
    """What a parameter is besides its numbers: of one tensor with which others, asking for gradients, and laid out how.

    One that is offloaded is made anew for every pass, and says nothing of others.
    """
    held = dict(model.named_parameters(remove_duplicate=False))
    tied: dict[int, list[str]] = defaultdict(list)
    for name, parameter in held.items():
        if not parameter.is_meta:
            tied[id(parameter)].append(name)
    return {
        f"the parameter {name}": repr([tied.get(id(parameter)), parameter.requires_grad, *_layout(parameter)])
        for name, parameter in held.items()
    }


def _layout(parameter: nn.Parameter) -> list[object]:
    """Where the numbers of a parameter lie, what hears of its gradient, and whether there is one."""
    hooks = [getattr(parameter, name, None) for name in ("_backward_hooks", "_post_accumulate_grad_hooks")]
    gradient = None if parameter.grad is None else [id(parameter.grad), parameter.grad._version]
    return [parameter.device, parameter.stride(), [_hooks(one) for one in hooks], gradient]


def _hooks(hooks: object) -> str:
    """Which hooks there are, without those that the libraries set themselves."""
    if not isinstance(hooks, Mapping):
        return ""
    own = {key: hook for key, hook in hooks.items() if not _of_library(hook)}
    return str([(key, id(hook)) for key, hook in own.items()]) if own else ""


def _of_library(hook: object) -> bool:
    function = getattr(hook, "func", hook)  # of a partial
    return (getattr(function, "__module__", None) or type(function).__module__ or "").startswith(_LIBRARIES)


def _global_hooks() -> list[object]:
    found = {name: hooks for name, hooks in vars(global_hooks).items() if name.startswith("_global_")}
    return [hooks for name, hooks in sorted(found.items()) if name.endswith(("_hooks", "_hooks_with_kwargs"))]


def _of_classes(model: nn.Module) -> dict[str, str]:
    """What all modules of a class compute with: the methods of the classes, and the functions beside them."""
    classes = {cls for module in model.modules() for cls in type(module).__mro__ if cls is not object}
    found = {
        f"{cls.__qualname__}.{name}": str(id(value))
        for cls in sorted(classes, key=repr)
        for name, value in vars(cls).items()
        if isinstance(value, _METHODS)
    }
    for source in sorted({cls.__module__ for cls in classes} | {"torch.nn.functional"}):
        for name, value in vars(sys.modules.get(source, types)).items():
            if isinstance(value, _FUNCTIONS):
                found[f"the function {source}.{name}"] = str(id(value))
    return found


def _of_configs(model: Any) -> dict[str, str]:
    """How attention is computed, and the configurations that modules have for themselves."""
    from transformers import PretrainedConfig
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    found, seen = {}, {id(model.config)}
    kind = getattr(model.config, "_attn_implementation", None)
    found["config._attn_implementation"] = str(kind)
    found[f"the function of {kind} attention"] = str(id(ALL_ATTENTION_FUNCTIONS.get(kind)))
    for name, module in model.named_modules():
        config = vars(module).get("config")
        if isinstance(config, PretrainedConfig) and id(config) not in seen:
            seen.add(id(config))
            found[f"{name}.config._attn_implementation"] = str(getattr(config, "_attn_implementation", None))
            found |= _plain(f"{name}.config", config.to_dict())
    return found


def _of_tokenizer(tokenizer: Any) -> dict[str, str]:
    found = {"the class of the tokenizer": str(id(type(tokenizer)))}
    found["tokenizer.special_tokens_map"] = _said(tokenizer.special_tokens_map)
    for name, value in vars(tokenizer).items():
        if _hides_a_method(tokenizer, name, value):
            found[f"the method {name} of the tokenizer"] = _said(value)
        elif not name.startswith("_") and name not in _USE_OF_TOKENIZER:
            found[f"tokenizer.{name}"] = _said(value)
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    # Each call sets how it pads and cuts.
    used = {name: part for name, part in parts.items() if name not in ("padding", "truncation")}
    return found | {f"tokenizer {name}": _digest(json.dumps(part, sort_keys=True)) for name, part in used.items()}


def _plain(where: str, values: Mapping[str, object]) -> dict[str, str]:
    return {f"{where}.{name}": _said(value) for name, value in values.items()}


def _said(value: object) -> str:
    """A value so that two texts are the same where the values are."""
    if isinstance(value, Tensor):
        return tensor_xxh3(value)
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | torch.dtype | torch.device):
        return repr(value)
    if isinstance(value, Mapping):
        return repr(sorted((repr(key), _said(item)) for key, item in value.items()))
    if isinstance(value, list | tuple | set | frozenset):
        items = [_said(item) for item in value]
        return repr(sorted(items) if isinstance(value, set | frozenset) else items)
    if isinstance(value, types.MethodType):  # made anew each time it is asked for
        return f"method {id(value.__self__)} {id(value.__func__)}"
    return f"{type(value).__qualname__} {id(value)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
