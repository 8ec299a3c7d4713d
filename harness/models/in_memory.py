"""A model that somebody else has loaded: wrapped as it is, and given back as it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

from harness.errors import ModelError, UsageError
from harness.models.lm import LM, shipped
from harness.models.reading import require_causal

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["borrowed", "called", "named", "require_model", "ships", "wrapped"]


_COMPILED = "_compiled_call_impl"
"""Where torch keeps what a module was compiled to."""

_INSIDE = {"_orig_mod": "its _orig_mod", "merge_and_unload": "what its merge_and_unload() returns"}
"""What torch.compile and peft put around a model, by what it has, and how the model is had."""


def require_model(model: object) -> None:
    """See that what is given is a model in memory.

    Raises:
        UsageError: it is none.
    """
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel | LM):
        cure = next((f"; give {said}" for name, said in _INSIDE.items() if hasattr(model, name)), "")
        raise UsageError(f"model is of type {type(model).__name__}, expected a name, a PreTrainedModel, or an LM{cure}")


def _require_tokenizer(tokenizer: object, model: PreTrainedModel) -> None:
    """See that what comes with a model in memory is its tokenizer.

    Raises:
        UsageError: it is none, or missing.
    """
    from transformers import PreTrainedTokenizerBase

    if tokenizer is None:
        raise UsageError(f"a {type(model).__name__} in memory comes without its tokenizer; give tokenizer=...")
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        cure = "its tokenizer attribute" if hasattr(tokenizer, "tokenizer") else "what AutoTokenizer reads of the model"
        raise UsageError(
            f"tokenizer is of type {type(tokenizer).__name__}, expected a PreTrainedTokenizer; give {cure}"
        )


def _require_open(model: PreTrainedModel) -> None:
    """Refuse weights that nothing but inference mode may write, and modules that pass over hooks.

    Raises:
        ModelError: there are such weights or modules.
    """
    shut = next((name for name, module in model.named_modules() if "_orig_mod" in module._modules), None)
    if shut is not None:
        raise ModelError(
            f"{called(model)}: '{shut}' is what torch.compile made of a module, and passes over what an editor hooks; "
            "put its _orig_mod in its place, or compile in place, with module.compile()"
        )
    name = next((name for name, parameter in model.named_parameters() if parameter.is_inference()), None)
    if name is not None:
        raise ModelError(
            f"{called(model)}: '{name}' was made in inference mode, where no gradient passes and nothing may be "
            "changed; load the model outside torch.inference_mode()"
        )


def wrapped(
    model: PreTrainedModel | LM,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    arch: Mapping[str, str] | None = None,
    text: str | None = None,
) -> LM:
    """A model in memory as every editor takes it; one that is wrapped already stays as it is.

    Args:
        model: the model; it is put into evaluation mode, and its parameters ask for no gradient any more, also where
            somebody has trained it since it was wrapped.
        tokenizer: its fast tokenizer.
        arch: parts of the architecture named by hand.
        text: plain text for second moments; None for ``mini`` of a shipped model and ``wikitext`` of another.

    Raises:
        UsageError: the tokenizer is missing or none, or what is given is no model.
        ModelError: its parts are not found or compiled, or a weight is not finite or was made in inference mode.
    """
    if isinstance(model, LM):
        if tokenizer is not None and tokenizer is not model.tokenizer:
            raise UsageError("tokenizer: the model brings one already; leave it out, or give the bare model")
        _require_open(model.model)
        model.make_ready()
        return model
    require_model(model)
    _require_tokenizer(tokenizer, model)
    _require_open(model)
    words = cast("PreTrainedTokenizerBase", tokenizer)
    read = text or ("mini" if ships(model) else "wikitext")
    lm = LM.wrap(model, words, name=called(model), names=arch, text=read)
    lm.check_finite()
    _ = lm.start  # tells of a tokenizer without one before anything is measured
    require_causal(lm.name, model)
    return lm


def called(model: PreTrainedModel) -> str:
    """The name of a model in memory: that of its configuration, or its class."""
    name = str(getattr(model.config, "name_or_path", "") or "")
    return Path(name).name if ships(model) else name or type(model).__name__


def named(lm: LM) -> str:
    """How a plan names a model in memory: its class, the name in its configuration, and the sha256 of its weights."""
    return f"{type(lm.model).__name__}:{lm.name}@{lm.fingerprint()}"


def ships(model: PreTrainedModel) -> bool:
    """Whether a model in memory is one that ships with the package."""
    name = str(getattr(model.config, "name_or_path", "") or "")
    return bool(name) and Path(name) in shipped().values()


@contextmanager
def borrowed(
    model: PreTrainedModel | LM,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    arch: Mapping[str, str] | None = None,
    text: str | None = None,
) -> Iterator[LM]:
    """As :func:`wrapped`, and afterwards its modes, gradients and padding token are again as they were.

    A model that was compiled in place runs as it is written meanwhile: what is compiled passes over new hooks.

    Args:
        model: a model in memory, wrapped or not.
        tokenizer: its tokenizer; None for a model that is wrapped.
        arch: parts of the architecture named by hand.
        text: plain text for second moments.

    Raises:
        UsageError, ModelError: as :func:`wrapped`.
    """
    from transformers import PreTrainedTokenizerBase

    bare, words = (model.model, model.tokenizer) if isinstance(model, LM) else (model, tokenizer)
    if not hasattr(bare, "modules") or not isinstance(words, PreTrainedTokenizerBase):
        yield wrapped(model, tokenizer, arch=arch, text=text)  # tells what is wrong
        return
    training = {module: module.training for module in bare.modules()}
    asking = {parameter: parameter.requires_grad for parameter in bare.parameters()}
    pad = words._special_tokens_map.get("pad_token")  # as it was set: pad_token gives its text alone
    try:
        with _as_written(bare):
            yield wrapped(model, tokenizer, arch=arch, text=text)
    finally:
        for module, mode in training.items():
            module.training = mode
        for parameter in [one for one, asks in asking.items() if one.requires_grad != asks]:
            parameter.requires_grad_(asking[parameter])
        if words._special_tokens_map.get("pad_token") is not pad:
            words.pad_token = pad


@contextmanager
def _as_written(model: PreTrainedModel) -> Iterator[None]:
    """Let modules that were compiled in place (``module.compile()``) run what they are written as."""
    compiled = {module: module.__dict__.pop(_COMPILED) for module in model.modules() if _COMPILED in vars(module)}
    try:
        yield
    finally:
        for module, call in compiled.items():
            setattr(module, _COMPILED, call)
