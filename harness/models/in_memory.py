"""A model that somebody else has loaded: wrapped as it is, and given back as it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import UsageError
from harness.models.lm import LM, shipped
from harness.models.reading import require_causal

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["borrowed", "called", "named", "require_model", "ships", "wrapped"]


def require_model(model: object) -> None:
    """See that what is given is a model in memory.

    Raises:
        UsageError: it is none.
    """
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel | LM):
        raise UsageError(f"model is of type {type(model).__name__}, expected a name, a PreTrainedModel, or an LM")


def wrapped(
    model: PreTrainedModel | LM,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    arch: Mapping[str, str] | None = None,
    text: str | None = None,
) -> LM:
    """A model in memory as every editor takes it; one that is wrapped already stays as it is.

    Args:
        model: the model; it is put into evaluation mode, and its parameters ask for no gradient any more.
        tokenizer: its fast tokenizer.
        arch: parts of the architecture named by hand.
        text: plain text for second moments; None for ``mini`` of a shipped model and ``wikitext`` of another.

    Raises:
        UsageError: the tokenizer is missing, or what is given is no model.
        ModelError: its parts are not found, or a weight is not finite.
    """
    if isinstance(model, LM):
        if tokenizer is not None and tokenizer is not model.tokenizer:
            raise UsageError("tokenizer: the model brings one already; leave it out, or give the bare model")
        return model
    require_model(model)
    if tokenizer is None:
        raise UsageError(f"a {type(model).__name__} in memory comes without its tokenizer; give tokenizer=...")
    lm = LM.wrap(
        model, tokenizer, name=called(model), names=arch, text=text or ("mini" if ships(model) else "wikitext")
    )
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

    Args:
        model: a model in memory, wrapped or not.
        tokenizer: its tokenizer; None for a model that is wrapped.
        arch: parts of the architecture named by hand.
        text: plain text for second moments.

    Raises:
        UsageError, ModelError: as :func:`wrapped`.
    """
    bare, words = (model.model, model.tokenizer) if isinstance(model, LM) else (model, tokenizer)
    if not hasattr(bare, "modules") or words is None:
        yield wrapped(model, tokenizer, arch=arch, text=text)  # tells what is wrong
        return
    training = {module: module.training for module in bare.modules()}
    asking = {parameter: parameter.requires_grad for parameter in bare.parameters()}
    pad = words.pad_token
    try:
        yield wrapped(model, tokenizer, arch=arch, text=text)
    finally:
        for module, mode in training.items():
            module.training = mode
        for parameter, asks in asking.items():
            parameter.requires_grad_(asks)
        if words.pad_token != pad:
            words.pad_token = pad
