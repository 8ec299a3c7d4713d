"""A causal language model with its tokenizer, and where things are in a text that it reads."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn

from harness.errors import DataError, ModelError, near
from harness.io import plain_text
from harness.io.hashes import combined_sha256, inner_tensors
from harness.models import arch, tokens
from harness.models.arch import Architecture
from harness.models.experts import Experts
from harness.models.naming import shipped
from harness.models.offload import Weights, device_of, value_of
from harness.models.placement import Placement, Where, require_device
from harness.models.published import Published, fast_hashes
from harness.models.reading import Checkpoint, read_checkpoint, require_causal, require_in_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.models.backpack import BackpackForCausalLM

__all__ = ["LM", "Batch", "load", "require_device", "require_dtype", "shipped"]

_LONGEST = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "max_sequence_length", "seq_length")
"""What configurations call the longest sequence (Llama, GPT-2, MPT, CTRL and XGLM, and others)."""

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


@dataclass(frozen=True)
class Batch:
    """Right-padded rows of tokens.

    Attributes:
        ids: ``[rows, columns]``.
        mask: ``[rows, columns]``, 1 where a token is real.
    """

    ids: Tensor
    mask: Tensor

    @property
    def lengths(self) -> Tensor:
        """The number of real tokens of each row, ``[rows]``."""
        return self.mask.sum(1)


@dataclass(frozen=True, eq=False)
class LM:
    """A model, its tokenizer, and the name by which the user knows them.

    Attributes:
        model: a causal language model in evaluation mode.
        tokenizer: its fast tokenizer.
        name: a shipped model, a folder, or a Hub repository.
        arch: where the model's parts are.
        text: where plain text for second moments comes from: ``mini``, a file, a folder, or a Hub data set.
        published: the sha256 of its weights, as far as they were asked for.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    arch: Architecture
    text: str = "mini"
    published: Published = field(default_factory=Published, repr=False)

    @classmethod
    def wrap(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str = "model",
        names: Mapping[str, str] | None = None,
        text: str = "mini",
    ) -> LM:
        """Wrap a loaded model; ``names`` overrides what :func:`harness.models.arch.resolve_architecture` finds.

        Args:
            model: the model, on its device.
            tokenizer: its tokenizer, a fast one.
            name: what errors and records call the model.
            names: parts of the architecture named by hand, which override what is found.
            text: plain text for second moments.

        Raises:
            ModelError: the tokenizer is a slow one, or the architecture is not understood.
        """
        if not tokenizer.is_fast:
            raise ModelError(
                f"{name}: the tokenizer cannot say where its tokens stand; use a fast (tokenizers) tokenizer"
            )
        require_in_memory(name, model)
        lm = cls(model, tokenizer, name, replace(arch.resolve_architecture(model, names), owner=name), text)
        lm.make_ready()
        return lm

    def make_ready(self) -> None:
        """Put the model into evaluation mode, let no parameter ask for gradients, and see that there is padding."""
        self.model.train(False)
        self.model.requires_grad_(False)
        if self.tokenizer.pad_token_id is None or self.tokenizer.pad_token_id >= self.vocabulary:
            self.tokenizer.pad_token = self._padding()

    @property
    def device(self) -> torch.device:
        """The device of the embedding, where inputs go."""
        return device_of(self.model.get_submodule(self.arch.embedding))

    def device_at(self, name: str) -> torch.device:
        """The device on which a module runs, where its values, moments and solves belong."""
        return device_of(self.module(name))

    @property
    def context(self) -> int:
        """The longest sequence that the model takes, in tokens."""
        # Models of text and images keep what concerns text in a configuration of its own.
        config = self.model.config.get_text_config(decoder=True)
        for key in _LONGEST:
            value = getattr(config, key, None)
            if isinstance(value, int) and value > 0:
                return value
        return int(min(self.tokenizer.model_max_length, 2048))

    @property
    def vocabulary(self) -> int:
        """The tokens that the model has an embedding of; its tokenizer may know more or fewer."""
        weight = self.model.get_submodule(self.arch.embedding).weight
        assert isinstance(weight, Tensor)
        return int(weight.shape[0])

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights that are edited: of the first down-projection, or of the embedding without one."""
        edited = self.arch.writable
        return self._stored(self.down(edited[0]) if edited else f"{self.arch.embedding}.weight").dtype

    @property
    def revision(self) -> str | None:
        """The commit of the Hub that was read; None of a model that comes from elsewhere."""
        commit = getattr(self.model.config, "_commit_hash", None)
        return None if commit is None else str(commit)

    @property
    def family(self) -> str:
        """The family of the model, as transformers names it (``gpt2``); a published Backpack calls itself GPT-2."""
        return "backpack" if _senses(self.model) else str(self.model.config.model_type)

    @functools.cached_property
    def cache_layers(self) -> int:
        """The layers of the model's key-value cache: one for each block as a rule.

        A Backpack has one more, for the senses; where blocks hold two attention modules each (LongCat) there are two.
        """
        if _senses(self.model):
            return self.model.cache_layers
        numbers = [getattr(module, "layer_idx", None) for module in self.model.modules()]
        return max([self.arch.layers, *(one + 1 for one in numbers if isinstance(one, int))])

    def documents(self, source: str | None = None) -> Iterator[str]:
        """What :func:`harness.io.plain_text.read_documents` reads of the model's plain text, or of another source."""
        return plain_text.read_documents(self.text if source is None else source)

    def module(self, name: str) -> nn.Module:
        """A module by name."""
        try:
            return self.model.get_submodule(name)
        except AttributeError:
            known = [n for n, _ in self.model.named_modules()]
            raise ModelError(f"'{name}' is not a module of {self.name}{near(name, known)}") from None

    def parameter(self, name: str) -> nn.Parameter:
        """A parameter by name, as the module stores it; one that is offloaded is fetched, and not to be written.

        What is written into a parameter stays for as long as its module is :func:`harness.models.offload.resident`.
        """
        stored = self._stored(name)
        if not stored.is_meta:
            return stored
        owner, _, leaf = name.rpartition(".")
        return nn.Parameter(value_of(self.module(owner), leaf, stored), requires_grad=False)

    def _stored(self, name: str) -> nn.Parameter:
        """A parameter as its module holds it, with values or not."""
        owner, _, leaf = name.rpartition(".")
        parameter = getattr(self.module(owner), leaf, None)
        if not isinstance(parameter, nn.Parameter):
            known = [n for n, _ in self.model.named_parameters()]
            raise ModelError(f"'{name}' is not a parameter of {self.name}{near(name, known)}")
        return parameter

    def transposed(self, name: str) -> bool:
        """Whether a parameter is stored as ``[in, out]``."""
        owner, _, leaf = name.rpartition(".")
        return leaf == "weight" and arch.stored_transposed(self.module(owner))

    def matrix(self, name: str) -> Tensor:
        """A view of a parameter, matrices always as ``[out, in]``; of stacked experts, one matrix, a copy."""
        return self.as_matrix(name, self.parameter(name).detach())

    def shape(self, name: str) -> torch.Size:
        """The shape of a parameter as :meth:`matrix` has it; one that is offloaded is not fetched."""
        return self.as_matrix(name, self._stored(name).detach().to("meta")).shape

    def as_matrix(self, name: str, stored: Tensor) -> Tensor:
        """What has the form in which a parameter is stored, as :meth:`matrix` has it."""
        experts = self.experts(name)
        if experts is not None:
            return experts.as_matrix(stored)
        return stored.T if self.transposed(name) else stored

    def as_stored(self, name: str, matrix: Tensor) -> Tensor:
        """What has the form of :meth:`matrix`, as the parameter is stored."""
        experts = self.experts(name)
        if experts is not None:
            return experts.as_stored(matrix)
        return matrix.T if self.transposed(name) else matrix

    def experts(self, name: str) -> Experts | None:
        """The experts whose stacked down-projections a parameter is; None of any other."""
        found = self.arch.stacked.get(name.rpartition(".")[0])
        return found if found is not None and found.parameter == name else None

    def down(self, layer: int) -> str:
        """The name of the weight of a layer's down-projection, or of those of its experts, which are one."""
        experts = self.arch.stacked.get(self.arch.writer_of(layer))
        return f"{self.arch.down_of(layer)}.weight" if experts is None else experts.parameter

    def encode(self, text: str) -> list[int]:
        """The tokens of a text that starts a sequence, with whatever the tokenizer puts in front (BOS), once."""
        ids = list(self._tokens(text)[0])
        return ids if tokens.opened(self.tokenizer, text) else ids[: len(ids) - self.closing]

    @functools.cached_property
    def closing(self) -> int:
        """How many tokens the tokenizer puts behind every text; a prompt must stay open."""
        return tokens.closing(self.tokenizer)

    @functools.cached_property
    def _tokens(self) -> Callable[[str], tuple[tuple[int, ...], tuple[tuple[int, int], ...]]]:
        """The tokens of a text, and the characters of each; an editor asks for the same texts again and again."""

        @functools.lru_cache(maxsize=8192)
        def read(text: str) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
            special = not tokens.opened(self.tokenizer, text)
            found = self.tokenizer(text, return_offsets_mapping=True, add_special_tokens=special)
            return tuple(found["input_ids"]), tuple(found["offset_mapping"])

        return read

    def continuation(self, prompt: str, text: str) -> list[int]:
        """The tokens of ``text`` where it continues ``prompt``, which keeps its own; see :mod:`harness.models.tokens`.

        Raises:
            DataError: the text has no tokens.
            ModelError: the model has no embedding of one.
        """
        found = tokens.following(self.tokenizer, head=self.encode(prompt), joint=self.encode(prompt + text), text=text)
        if not found:
            raise DataError(f"'{text}' has no tokens; give a target that the tokenizer of {self.name} can write")
        self.require_known(found)
        return found

    def require_known(self, ids: Iterable[int]) -> None:
        """See that the model has an embedding of tokens, and so can read and write them.

        Raises:
            ModelError: it has none of one.
        """
        most = max(ids, default=0)
        if most >= self.vocabulary:
            raise ModelError(
                f"{self.name}: the tokenizer writes token {most} ('{self.tokenizer.convert_ids_to_tokens(most)}'), but "
                f"the model has {self.vocabulary} embeddings; use the tokenizer of the model"
            )

    @property
    def start(self) -> int:
        """The token with which a text begins where nothing stands in front of it: BOS, else the one that ends a text.

        Raises:
            ModelError: the tokenizer has neither.
        """
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if isinstance(token, int):
                return token
        raise ModelError(f"{self.name}: the tokenizer has no token that begins or ends a text; set its bos_token")

    @property
    def pad(self) -> int:
        """The token that stands in padding, which the model has an embedding of."""
        return int(self.tokenizer.pad_token_id or 0)

    def _padding(self) -> str:
        """A token for padding, of a tokenizer that has none, or one that the model has no embedding of."""
        special = [self.tokenizer.eos_token_id, self.tokenizer.bos_token_id, self.tokenizer.unk_token_id]
        # It is left out of what a model writes: without a special token, one that no text holds.
        unseen = [i for i in range(min(512, self.vocabulary)) if not str(self.tokenizer.decode([i])).isprintable()]
        known = [i for i in [*special, *unseen, self.vocabulary - 1] if i is not None and i < self.vocabulary]
        return str(self.tokenizer.convert_ids_to_tokens(known[0]))

    def batch(self, rows: Sequence[Sequence[int]]) -> Batch:
        """Right-pad rows of tokens on the model's device.

        Raises:
            ModelError: the model has no embedding of a token.
        """
        width = max(len(row) for row in rows)
        self.require_known(max(row, default=0) for row in rows)
        pad = self.pad
        ids = torch.tensor([list(row) + [pad] * (width - len(row)) for row in rows], device=self.device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=self.device)
        return Batch(ids, mask)

    def span(self, text: str, subject: str, start: int | None = None) -> tuple[int, int]:
        """The tokens of ``text`` that cover ``subject``: first, and one past the last.

        Args:
            text: the text, as :meth:`encode` takes it.
            subject: what is looked for.
            start: the character at which the subject begins; by default its first occurrence.

        Raises:
            DataError: the subject does not occur.
        """
        begin = text.find(subject) if start is None else start
        if begin < 0 or text[begin : begin + len(subject)] != subject:
            raise DataError(
                f"the subject '{subject}' is not in '{text}'; give the subject as it is written in the prompt"
            )
        end = begin + len(subject)
        inside = [i for i, (a, b) in enumerate(self._tokens(text)[1]) if a < end and b > begin and text[a:b].strip()]
        if not inside:
            raise DataError(f"the subject '{subject}' has no token of its own in '{text}'; choose another prompt")
        return inside[0], inside[-1] + 1

    @property
    def end_tokens(self) -> frozenset[int]:
        """The tokens that end a text, as the checkpoint says."""
        said = self.model.generation_config.eos_token_id
        return frozenset([said] if isinstance(said, int) else said or ())

    @contextmanager
    def plain_generation(self) -> Iterator[None]:
        """Let ``generate`` follow its arguments alone.

        A checkpoint may recommend how to sample (``generation_config.json``: temperature, top_p, a repetition penalty,
        beams), and transformers follows it wherever an argument is silent. Only the tokens that end a text are kept.
        """
        from transformers import GenerationConfig

        kept = self.model.generation_config
        ends = {name: getattr(kept, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        self.model.generation_config = GenerationConfig(**ends)  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            self.model.generation_config = kept

    def fingerprint(self) -> str:
        """The sha256 over all parameters and buffers, as they are now."""
        return combined_sha256(self.state_hashes())

    def state_hashes(self) -> dict[str, str]:
        """The sha256 of every parameter and buffer, as they are now."""
        return self.published.of_model(Weights(self.model, dict(sorted(self.model.state_dict().items()))))

    def fast_hashes(self) -> dict[str, str]:
        """The fast hash of every parameter and buffer, as they are now: bitwise the same where this is the same."""
        return fast_hashes(Weights(self.model, self.model.state_dict()))

    def hashes(self, parameters: Iterable[str]) -> dict[str, str]:
        """The sha256 of some parameters, as they are now."""
        return self.published.of(Weights(self.model, {name: self._stored(name) for name in sorted(parameters)}))

    def check_finite(self) -> None:
        """Look for a NaN or an infinity in the weights.

        Raises:
            ModelError: a weight is not finite; names it.
        """
        for name, parameter in Weights(self.model, dict(self.model.named_parameters())).items():
            if not all(bool(torch.isfinite(part).all()) for part in inner_tensors(parameter).values() or [parameter]):
                raise ModelError(
                    f"{self.name}: the weight '{name}' holds a NaN or an infinity; use an intact checkpoint"
                )


def load(
    name: str,
    *,
    dtype: str = "float32",
    device: Where = None,
    names: Mapping[str, str] | None = None,
    text: str | None = None,
    args: Mapping[str, Any] | None = None,
    device_map: str | Mapping[str, object] | None = None,
    max_memory: str | Mapping[Any, object] | None = None,
    offload_folder: str | Path | None = None,
) -> LM:
    """Load a shipped model, a folder, a GGUF file, or a Hub repository.

    Args:
        name: the model; of a repository also ``owner/name@revision``.
        dtype: float32, bfloat16, float16 or float64, or ``auto`` for that of the checkpoint.
        device: a device, or ``auto`` to spread the model; by default an accelerator where there is one, else the CPU;
            or a :class:`Placement`, which says all of where the weights go.
        names: parts of the architecture named by hand.
        text: plain text for second moments; by default ``mini`` for shipped models and ``wikitext`` for others.
        args: more of what lm-eval's ``--model_args`` takes, see :class:`harness.models.reading.Checkpoint`.
        device_map: how the model is spread over devices, as transformers takes it, instead of ``device``.
        max_memory: what each device holds at most, see :class:`Placement`.
        offload_folder: where weights go that lie on disk.

    Raises:
        UsageError: device and device_map are both given, or the model cannot be placed so on this machine.
        ModelError: the model cannot be loaded, or a weight is not finite.
    """
    require_dtype(dtype)
    place = device
    if not isinstance(place, Placement):
        place = Placement.of(place, device_map=device_map, max_memory=max_memory, offload_folder=offload_folder)
    if text is not None:
        plain_text.require_text(text)
    inside = shipped().get(name)
    asked = Checkpoint(
        name, str(inside or (Path(name).expanduser() if name.startswith("~") else name)),
        dtype=_DTYPES.get(dtype, "auto"), placement=place, args=args or {}, known=", ".join(shipped()),
    )  # fmt: skip
    model, tokenizer = read_checkpoint(asked)
    if not place.spread:
        _place(model, place.device or _best_device())
    lm = LM.wrap(model, tokenizer, name=name, names=names, text=text or ("mini" if inside else "wikitext"))
    lm.check_finite()
    _ = lm.start  # tells of a tokenizer without one before anything is measured
    require_causal(name, model)
    return lm


def _senses(model: PreTrainedModel) -> TypeGuard[BackpackForCausalLM]:
    """Whether a model is a Backpack."""
    from harness.models.backpack import BackpackForCausalLM

    return isinstance(model, BackpackForCausalLM)


def require_dtype(dtype: str) -> None:
    """See that a model can be loaded in a type of that name; ``auto`` is that of the checkpoint.

    Raises:
        ModelError: there is none.
    """
    if dtype not in (*_DTYPES, "auto"):
        raise ModelError(f"dtype '{dtype}' does not exist{near(dtype, [*_DTYPES, 'auto'])}")


def _place(model: PreTrainedModel, device: str) -> None:
    try:
        nn.Module.to(model, device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch that was built without the device
        reason = str(error).splitlines()[0]
        raise ModelError(f"device '{device}' cannot be used ({reason}); give cpu, cuda, mps or auto") from error


def _best_device() -> str:
    return str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"
