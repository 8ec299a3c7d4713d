"""Checkpoints as people have them: a folder, a GGUF file, a Hub repository; a model, or an adapter that peft saved."""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from harness.errors import HarnessError, ModelError, UsageError
from harness.io import hub
from harness.models.naming import GGUF, split_revision
from harness.models.offload import device_of, is_fetched
from harness.models.placement import DISK_IS_FULL, Placement

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Checkpoint", "read_checkpoint", "require_args", "require_causal", "require_in_memory"]

_ADAPTER = "adapter_config.json"
_OURS = ("revision", "subfolder", "tokenizer", "trust_remote_code", "gguf_file", "peft")
_ELSEWHERE = {
    "pretrained": "--model",
    "dtype": "--dtype",
    "device": "--device",
    "device_map": "--device-map",
    "parallelize": "--device-map auto",
    "max_memory": "--max-memory",
    "max_memory_per_gpu": "--max-memory",
    "max_cpu_memory": "--max-memory cpu=SIZE",
    "offload_folder": "--offload-folder",
    "batch_size": "--batch-size",
}
"""What lm-eval takes as an argument of the model and this program as an option."""


@dataclass(frozen=True)
class Checkpoint:
    """What is read, and how.

    Attributes:
        name: what the user calls it, for errors.
        source: a folder, a GGUF file, or a Hub repository, with ``@revision`` or not.
        dtype: the type of its weights; ``auto`` for that of the checkpoint.
        placement: where its weights go.
        args: more of what ``lm_eval --model hf --model_args`` takes: ``revision``, ``subfolder``, ``tokenizer``,
            ``trust_remote_code``, ``gguf_file``, ``peft``; any other goes to transformers, as it does there.
        known: the names of models that ship, for errors.
    """

    name: str
    source: str
    dtype: torch.dtype | Literal["auto"] = torch.float32
    placement: Placement = field(default_factory=Placement)
    args: Mapping[str, Any] = field(default_factory=dict)
    known: str = ""

    @cached_property
    def where(self) -> str:
        """The folder or the repository in which the files lie."""
        source, _ = split_revision(self.source)
        return str(Path(source).expanduser().parent) if source.endswith(GGUF) else source

    @cached_property
    def gguf(self) -> str | None:
        """The GGUF file in there that is read; None for a checkpoint of transformers."""
        source, _ = split_revision(self.source)
        return Path(source).name if source.endswith(GGUF) else self.args.get("gguf_file")

    @cached_property
    def revision(self) -> str | None:
        """The branch, tag or commit; None for the Hub's own choice.

        Raises:
            ModelError: name and arguments say two.
        """
        _, behind = split_revision(self.source)
        given = self.args.get("revision")
        if behind is not None and given is not None and str(given) != behind:
            raise ModelError(f"{self.name}: the name says revision {behind} and model_args {given}; give one of them")
        return behind if given is None else str(given)

    @cached_property
    def files(self) -> dict[str, Any]:
        """The arguments of transformers that say which files are read."""
        named = {"revision": self.revision, "subfolder": self.args.get("subfolder"), "gguf_file": self.gguf}
        trusted = {"trust_remote_code": True} if self.args.get("trust_remote_code") else {}
        return {key: str(value) for key, value in named.items() if value is not None} | trusted

    @cached_property
    def others(self) -> dict[str, Any]:
        """The arguments that go to the model as they are."""
        return {key: value for key, value in self.args.items() if key not in _OURS}


def require_args(args: Mapping[str, Any]) -> None:
    """Refuse arguments for which there is an option.

    Raises:
        UsageError: there is one of them.
    """
    for key in args:
        if key in _ELSEWHERE:
            raise UsageError(f"model_args: {key}={args[key]} is said with {_ELSEWHERE[key]}; leave it out there")


def read_checkpoint(asked: Checkpoint) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model and its tokenizer; a GGUF file is dequantised, an adapter merged into the model that it was trained for.

    Raises:
        UsageError: an argument is one for which there is an option.
        ModelError: it cannot be read, is no causal language model, or weights are missing.
    """
    require_args(asked.args)
    if asked.gguf is not None:
        _require_gguf(asked)
    _require_hub(asked)
    base = None if asked.gguf is not None else _base_of_adapter(asked)
    if base is None:
        _require_config(asked)
    try:
        if base is not None:
            return _adapted(asked, *read_checkpoint(base), asked.where)
        model, tokenizer, report = _loaded(asked)
    except HarnessError:
        raise
    except ImportError as error:
        raise ModelError(
            f"{asked.name}: a library that it needs is not installed ({_reason(error)}); install it, or take a "
            "checkpoint that is not quantised"
        ) from error
    except Exception as error:  # a damaged or unusual folder fails with whatever the library that reads it raises
        raise ModelError(_failure(asked, error)) from error
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise ModelError(
            f"{asked.name}: the checkpoint lacks {missing}, which would be random; use an intact checkpoint"
        )
    adapter = asked.args.get("peft")
    return _adapted(asked, model, tokenizer, str(adapter)) if adapter else (model, tokenizer)


def _loaded(asked: Checkpoint) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Mapping[str, Any]]:
    """The model, its tokenizer, and what transformers says of its loading."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if asked.gguf is None:
        _require_decoder(asked)
    own = asked.args.get("tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(own or asked.where, **({} if own else asked.files))
    family: Any = AutoModelForCausalLM if asked.gguf is not None else _family(asked)
    _require_modules(asked, family)
    model, report = family.from_pretrained(
        asked.where,
        dtype=asked.dtype,
        output_loading_info=True,
        **asked.placement.arguments,
        **asked.files,
        **asked.others,
    )
    return (model if asked.gguf is None else _plain(model)), tokenizer, report


def _require_modules(asked: Checkpoint, family: Any) -> None:
    """See that a device map names modules that the model has, before its weights are read.

    Raises:
        UsageError: it names another.
    """
    from transformers import AutoConfig

    if isinstance(asked.placement.device_map, tuple) and hasattr(family, "from_config"):
        config = AutoConfig.from_pretrained(asked.where, **{k: v for k, v in asked.files.items() if k != "gguf_file"})
        with torch.device("meta"):
            asked.placement.require_modules(family.from_config(config), asked.name)


def _failure(asked: Checkpoint, error: Exception) -> str:
    """Why a checkpoint cannot be loaded, and what to do about it."""
    reason = _reason(error)
    if isinstance(error, OSError) and error.errno in DISK_IS_FULL:
        return f"{asked.name}: the disk of the offload folder is full; name a larger one with --offload-folder"
    if (asked.revision is not None and "revision" in reason.lower()) or "git identifier" in str(error):
        return f"{asked.name}: has no revision '{asked.revision}' ({reason}); name a branch, a tag or a commit of it"
    if asked.gguf is None:
        return f"{asked.name}: cannot be loaded ({reason}); shipped models are {asked.known}"
    if "not supported" in reason or "Unrecognized" in reason:
        return f"{asked.name}: {reason.split(';')[0]}; give another file, or a checkpoint in the format of transformers"
    return f"{asked.name}: the file is cut off or damaged ({reason}); fetch it again"


# --- GGUF -------------------------------------------------------------------------------------------------------------


def _require_gguf(asked: Checkpoint) -> None:
    """See that there is a GGUF file, and a library that reads it.

    Raises:
        ModelError: there is none, or it is something else.
    """
    path = Path(asked.where) / str(asked.gguf)
    if Path(asked.where).is_dir():
        if not path.is_file():
            raise ModelError(f"{asked.name}: no such file; give a GGUF file, a folder, or a Hub repository")
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise ModelError(f"{asked.name}: is no GGUF file, as it does not begin with GGUF; fetch it again")
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(f"{asked.name}: the reader gguf is not installed; pip install 'lm-edit-harness[gguf]'")


def _plain(model: PreTrainedModel) -> PreTrainedModel:
    """A model that says nothing of the quantisation that its file had: its weights are plain numbers now."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        if name in vars(model):
            delattr(model, name)
    return model


# --- the Hub ----------------------------------------------------------------------------------------------------------


def _require_hub(asked: Checkpoint) -> None:
    """Tell at once where the Hub is needed and cannot be reached: its client tries for a minute before it says so."""
    from huggingface_hub import try_to_load_from_cache

    source = asked.where
    if Path(source).expanduser().exists() or source.startswith(("/", ".", "~")) or source.count("/") > 1:
        return
    files = [asked.gguf] if asked.gguf else ["config.json", _ADAPTER]
    if any(isinstance(try_to_load_from_cache(source, file, revision=asked.revision), str) for file in files):
        return
    reason = hub.unreachable()
    if reason is not None:
        raise ModelError(
            f"{asked.name}: cannot be loaded (it is not on this machine, and {reason}); shipped models are "
            f"{asked.known}"
        )


def _reason(error: Exception, last: bool = False) -> str:
    """The first line of an error that says something, or its last one, and no more of it than fits a line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1 if last else 0][:300] if lines else type(error).__name__


def _require_config(asked: Checkpoint) -> None:
    path = Path(asked.where).expanduser()
    inside = path / str(asked.args.get("subfolder") or "")
    local = asked.name.startswith((".", "/", "~")) or path.exists()
    if local and asked.gguf is None and not (inside / "config.json").is_file():
        raise ModelError(f"{asked.name}: no config.json there; give a folder with a Hugging Face checkpoint")


# --- adapters ---------------------------------------------------------------------------------------------------------


def _base_of_adapter(asked: Checkpoint) -> Checkpoint | None:
    """The model that an adapter of peft was trained for; None where the source is no adapter.

    Raises:
        ModelError: its configuration cannot be read.
    """
    from transformers.utils.peft_utils import find_adapter_config_file

    source = asked.where
    try:
        found = find_adapter_config_file(source, revision=asked.revision)
    except (OSError, ValueError):  # of a model that is not there its loading tells
        return None
    if found is None or (Path(source) / "config.json").is_file():
        return None
    try:
        settings = json.loads(Path(found).read_text(encoding="utf-8"))
        base = settings["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{asked.name}: {_ADAPTER} names no base_model_name_or_path; save the adapter again"
        ) from error
    if not isinstance(base, str) or not base:
        raise ModelError(
            f"{asked.name}: {_ADAPTER} has base_model_name_or_path {base!r}, expected a model; name it there"
        )
    beside = Path(source) / base
    place = str(beside) if not Path(base).exists() and (beside / "config.json").is_file() else base
    args = {key: value for key, value in asked.args.items() if key != "revision"}
    args |= {"revision": settings["revision"]} if settings.get("revision") else {}
    return replace(asked, name=place, source=place, args=args)


def _adapted(
    asked: Checkpoint, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, adapter: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model with an adapter added to its weights, and the tokenizer that the adapter brings, if any.

    Raises:
        ModelError: the adapter was trained for another model, or has no weights to add (prompt tuning).
    """
    from transformers import AutoTokenizer

    if _has_tokenizer(adapter):
        tokenizer = AutoTokenizer.from_pretrained(adapter, revision=asked.revision)
        if len(tokenizer) > len(_embedding(model)):
            model.resize_token_embeddings(len(tokenizer))
    adapted = _fitting(asked.name, adapter, model, asked.revision)
    merge = getattr(adapted.base_model, "merge_and_unload", None)
    if merge is None:
        kind = str(adapted.peft_config["default"].peft_type).removeprefix("PeftType.")
        raise ModelError(
            f"{asked.name}: a {kind} adapter cannot be merged into the weights; give a LoRA adapter or a model"
        )
    merged: PreTrainedModel = merge(safe_merge=False)
    merged.config.name_or_path = adapter
    return merged, tokenizer


def _has_tokenizer(source: str) -> bool:
    return not Path(source).is_dir() or any(Path(source).glob("tokenizer*.json"))


def _fitting(name: str, adapter: str, model: PreTrainedModel, revision: str | None) -> Any:
    """An adapter on its base, where every tensor of either has its place in the other.

    Raises:
        ModelError: one has none, or another shape; or there is no adapter.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from peft.utils import load_peft_weights

    own = {f"base_model.model.{key}" for key in model.state_dict()}
    where: dict[str, Any] = {} if revision is None or Path(adapter).is_dir() else {"revision": revision}
    try:
        with warnings.catch_warnings(record=True) as told:
            # peft asks a model by a name that transformers has given up; what is missing it says as a warning only.
            warnings.simplefilter("always")
            adapted = PeftModel.from_pretrained(model, adapter, **where)
            placed = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
        held = set(load_peft_weights(adapter, device="cpu", **where))
    except (RuntimeError, ValueError) as error:
        raise ModelError(_misfit(name, adapter, _reason(error, last=True))) from error
    missing = [str(one.message) for one in told if "missing adapter keys" in str(one.message)]
    homeless = sorted(held - placed - own)  # an embedding that was resized is saved whole
    if missing or homeless:
        reason = missing[0][:200] if missing else f"the model has no place for {homeless[0]}"
        raise ModelError(_misfit(name, adapter, reason))
    return adapted


def _misfit(name: str, adapter: str, reason: str) -> str:
    return (
        f"{name}: the adapter was trained for another base ({reason}); name that model in {Path(adapter) / _ADAPTER}, "
        f"or give it with --model BASE --model-args peft={adapter}"
    )


# --- what transformers would load without a word ----------------------------------------------------------------------


def _family(asked: Checkpoint) -> Any:
    """What loads a checkpoint; the published Backpacks say that they are GPT-2, and bring code of their own."""
    from transformers import AutoModelForCausalLM, PretrainedConfig

    from harness.models import backpack

    backpack.register()
    settings, _ = PretrainedConfig.get_config_dict(asked.where, **asked.files)
    return backpack.BackpackForCausalLM if "num_senses" in settings else AutoModelForCausalLM


def _require_decoder(asked: Checkpoint) -> None:
    """Refuse an encoder-decoder; transformers would load one half of BART and call it a language model.

    Raises:
        ModelError: it is one.
    """
    from transformers import CONFIG_MAPPING, PretrainedConfig

    settings, _ = PretrainedConfig.get_config_dict(asked.where, **asked.files)
    kind = settings.get("model_type")
    usual = isinstance(kind, str) and kind in CONFIG_MAPPING and CONFIG_MAPPING[kind].is_encoder_decoder
    if settings.get("is_encoder_decoder", usual) is True:
        raise ModelError(
            f"{asked.name}: {kind} is an encoder-decoder, which reads a prompt otherwise than it writes; give a causal "
            "(decoder-only) language model"
        )


def _embedding(model: PreTrainedModel) -> torch.Tensor:
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    return weight


def require_in_memory(name: str, model: nn.Module) -> None:
    """Refuse a model of which weights lie nowhere.

    Raises:
        ModelError: a parameter has no values.
    """
    away = [key for key, parameter in model.named_parameters() if parameter.is_meta and not is_fetched(model, key)]
    if away:
        raise ModelError(
            f"{name}: {len(away)} of its weights have no values ('{away[0]}'); load it with device_map, so that they "
            "are fetched when they are needed, in a smaller dtype, or on a device that holds it"
        )


def require_causal(name: str, model: PreTrainedModel) -> None:
    """Refuse a model whose prediction of a token depends on later ones: XLNet, BERT and its kin without a mask.

    Tried on two rows that differ in the last of six tokens: what is predicted before it must be the same.

    Raises:
        ModelError: it is not, or the model cannot be run on tokens alone.
    """
    embedding = _embedding(model)
    ids = (1 + torch.arange(6, device=device_of(model.get_input_embeddings()))).expand(2, 6).clone()
    ids[1, -1] = 7
    ids %= len(embedding)
    kind = getattr(model.config, "model_type", type(model).__name__)
    if getattr(model.config, "return_dict", True) is False:
        raise ModelError(f"{name}: its configuration has return_dict false, so that it gives tuples; set it to true")
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
