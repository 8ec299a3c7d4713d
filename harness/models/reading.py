"""Checkpoints as people have them: a folder or a Hub repository, a model or an adapter that peft saved."""

from __future__ import annotations

import json
import socket
import urllib.parse
import urllib.request
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from harness.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["read_checkpoint", "require_causal", "require_in_memory"]

_ADAPTER = "adapter_config.json"
_PATIENCE = 5.0  # seconds that the Hub may take to answer


def read_checkpoint(
    name: str, source: str, *, dtype: torch.dtype, spread: bool, known: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model and its tokenizer; an adapter is merged into the model that it was trained for.

    Args:
        name: what the user calls it, for errors.
        source: a folder or a Hub repository.
        dtype: the type of its weights.
        spread: whether the model is spread over devices.
        known: the names of models that ship, for errors.

    Raises:
        ModelError: it cannot be read, is no causal language model, or weights are missing.
    """
    from transformers import AutoTokenizer

    _require_hub(name, source, known)
    base = _base_of_adapter(name, source)
    if base is None:
        _require_config(name, source)
    try:
        if base is not None:
            model, theirs = read_checkpoint(base, base, dtype=dtype, spread=spread, known=known)
            tokenizer = AutoTokenizer.from_pretrained(source) if _has_tokenizer(source) else theirs
            return _merged(name, source, model, len(tokenizer)), tokenizer
        _require_decoder(name, source)
        tokenizer = AutoTokenizer.from_pretrained(source)
        placement = {"device_map": "auto"} if spread else {}
        model, report = _family(source).from_pretrained(source, dtype=dtype, output_loading_info=True, **placement)
    except ModelError:
        raise
    except ImportError as error:
        raise ModelError(
            f"{name}: a library that it needs is not installed ({_reason(error)}); install it, or take a checkpoint "
            "that is not quantised"
        ) from error
    except Exception as error:  # a damaged or unusual folder fails with whatever the library that reads it raises
        raise ModelError(f"{name}: cannot be loaded ({_reason(error)}); shipped models are {known}") from error
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise ModelError(f"{name}: the checkpoint lacks {missing}, which would be random; use an intact checkpoint")
    return model, tokenizer


def _require_hub(name: str, source: str, known: str) -> None:
    """Tell at once where the Hub is needed and cannot be reached: its client tries for a minute before it says so."""
    from huggingface_hub import constants, try_to_load_from_cache

    address = urllib.parse.urlsplit(constants.ENDPOINT)
    if Path(source).expanduser().exists() or source.startswith(("/", ".", "~")) or source.count("/") > 1:
        return
    if constants.HF_HUB_OFFLINE or urllib.request.getproxies() or address.hostname is None:
        return
    if any(isinstance(try_to_load_from_cache(source, file), str) for file in ("config.json", _ADAPTER)):
        return
    try:
        socket.create_connection((address.hostname, address.port or 443), timeout=_PATIENCE).close()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ModelError(
            f"{name}: cannot be loaded (it is not on this machine, and {address.hostname} does not answer: {reason}); "
            f"shipped models are {known}"
        ) from error


def _reason(error: Exception) -> str:
    """The first line of an error that says something, and no more of it than fits a line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def _require_config(name: str, source: str) -> None:
    path = Path(source).expanduser()
    if (name.startswith((".", "/", "~")) or path.exists()) and not (path / "config.json").is_file():
        raise ModelError(f"{name}: no config.json there; give a folder with a Hugging Face checkpoint")


def _base_of_adapter(name: str, source: str) -> str | None:
    """The model that an adapter of peft was trained for; None where the source is no adapter.

    Raises:
        ModelError: its configuration cannot be read.
    """
    from transformers.utils.peft_utils import find_adapter_config_file

    try:
        found = find_adapter_config_file(source)
    except (OSError, ValueError):  # of a model that is not there its loading tells
        return None
    if found is None or (Path(source) / "config.json").is_file():
        return None
    try:
        settings = json.loads(Path(found).read_text(encoding="utf-8"))
        base = settings["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{name}: {_ADAPTER} names no base_model_name_or_path; save the adapter again") from error
    if not isinstance(base, str) or not base:
        raise ModelError(f"{name}: {_ADAPTER} has base_model_name_or_path {base!r}, expected a model; name it there")
    beside = Path(source) / base
    return str(beside) if not Path(base).exists() and (beside / "config.json").is_file() else base


def _has_tokenizer(source: str) -> bool:
    return not Path(source).is_dir() or any(Path(source).glob("tokenizer*.json"))


def _merged(name: str, source: str, model: PreTrainedModel, tokens: int) -> PreTrainedModel:
    """The model with an adapter added to its weights.

    Raises:
        ModelError: the adapter is of a kind that has no weights to add (prompt tuning).
    """
    from peft import PeftModel

    if tokens > len(_embedding(model)):
        model.resize_token_embeddings(tokens)
    with warnings.catch_warnings():
        # peft asks a model by a name that transformers has given up.
        warnings.simplefilter("ignore", FutureWarning)
        adapted = PeftModel.from_pretrained(model, source)
    merge = getattr(adapted.base_model, "merge_and_unload", None)
    if merge is None:
        kind = str(adapted.peft_config["default"].peft_type).removeprefix("PeftType.")
        raise ModelError(f"{name}: a {kind} adapter cannot be merged into the weights; give a LoRA adapter or a model")
    merged: PreTrainedModel = merge(safe_merge=False)
    merged.config.name_or_path = source
    return merged


def _family(source: str) -> Any:
    """What loads a checkpoint; the published Backpacks say that they are GPT-2, and bring code of their own."""
    from transformers import AutoModelForCausalLM, PretrainedConfig

    from harness.models import backpack

    backpack.register()
    settings, _ = PretrainedConfig.get_config_dict(source)
    return backpack.BackpackForCausalLM if "num_senses" in settings else AutoModelForCausalLM


def _require_decoder(name: str, source: str) -> None:
    """Refuse an encoder-decoder; transformers would load one half of BART and call it a language model.

    Raises:
        ModelError: it is one.
    """
    from transformers import CONFIG_MAPPING, PretrainedConfig

    settings, _ = PretrainedConfig.get_config_dict(source)
    kind = settings.get("model_type")
    usual = isinstance(kind, str) and kind in CONFIG_MAPPING and CONFIG_MAPPING[kind].is_encoder_decoder
    if settings.get("is_encoder_decoder", usual) is True:
        raise ModelError(
            f"{name}: {kind} is an encoder-decoder, which reads a prompt otherwise than it writes; give a causal "
            "(decoder-only) language model"
        )


def _embedding(model: PreTrainedModel) -> torch.Tensor:
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    return weight


def require_in_memory(name: str, model: nn.Module) -> None:
    """Refuse a model of which weights lie on disk or nowhere.

    Raises:
        ModelError: a parameter has no values.
    """
    away = [key for key, parameter in model.named_parameters() if parameter.is_meta]
    if away:
        raise ModelError(
            f"{name}: {len(away)} of its weights are not in memory ('{away[0]}'); load it without offloading, in a "
            "smaller dtype, or on a device that holds it"
        )


def require_causal(name: str, model: PreTrainedModel) -> None:
    """Refuse a model whose prediction of a token depends on later ones: XLNet, BERT and its kin without a mask.

    Tried on two rows that differ in the last of six tokens: what is predicted before it must be the same.

    Raises:
        ModelError: it is not, or the model cannot be run on tokens alone.
    """
    embedding = _embedding(model)
    ids = (1 + torch.arange(6, device=embedding.device)).expand(2, 6).clone()
    ids[1, -1] = 7
    ids %= len(embedding)
    kind = getattr(model.config, "model_type", type(model).__name__)
    try:
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[:, :5].float()
    except Exception as error:  # whatever a model raises that wants more than tokens
        reason = _reason(error)
        raise ModelError(f"{name}: {kind} cannot be run on tokens alone ({reason}); give another model") from error
    moved = float((logits[0] - logits[1]).norm() / logits[0].norm().clamp(min=1e-12))
    if moved > (1e-4 if embedding.dtype in (torch.float32, torch.float64) else 2e-2):
        raise ModelError(
            f"{name}: {kind} is no causal language model, as what it predicts depends on later tokens; give a model "
            "that reads from left to right (of BERT's kin one with is_decoder)"
        )
