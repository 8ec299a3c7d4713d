"""Finds, among sentences, those that are near a context in the states of an encoder; the encoder is the user's.

Source: dense retrieval as in Contriever (Izacard et al. 2021, arXiv 2112.09118), which MeLLo and SCR retrieve with: a
text is the mean of the last states over its tokens.  Both compare by the product of two such vectors; here the cosine
is the default, which has a scale that a threshold can be set on.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from harness.editing.editor import Editor
from harness.errors import UsageError
from harness.io.hashes import combined_sha256, tensor_sha256
from harness.methods.retrieval import Fact, Index
from harness.models.lm import LM

__all__ = ["DenseIndex", "Encoder", "Retrieving", "Similarity", "index_of", "load_encoder"]

Similarity = Literal["cosine", "product"]
Pooling = Literal["mean", "cls"]

_BATCH = 32
_KNOWN = {"Transformer", "Pooling", "Normalize"}
"""The steps of a sentence encoder that are followed here; a cosine needs no `Normalize`."""


@dataclass(frozen=True, eq=False)
class Encoder:
    """A model that makes one vector of a text.

    Attributes:
        model: an encoder as transformers loads it, in float32.
        tokenizer: its tokenizer.
        pooling: whether a text is the mean of its tokens' last states, or the state of its first token.
        longest: the tokens that it takes; of a longer text the end is left out.
    """

    model: Any
    tokenizer: Any
    pooling: Pooling
    longest: int

    def embed(self, texts: Sequence[str]) -> Float[Tensor, "texts dim"]:
        """A row for each text."""
        rows = [self._rows(texts[first : first + _BATCH]) for first in range(0, len(texts), _BATCH)]
        return torch.cat(rows)

    @cached_property
    def sha256(self) -> str:
        """Of its weights, by name."""
        return combined_sha256({name: tensor_sha256(one) for name, one in sorted(self.model.state_dict().items())})

    def _rows(self, texts: Sequence[str]) -> Float[Tensor, "texts dim"]:
        found = self.tokenizer(list(texts), truncation=True, max_length=self.longest)["input_ids"]
        ids = pad_sequence([torch.tensor(row, dtype=torch.long) for row in found], batch_first=True)
        mask = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in found], batch_first=True)
        with torch.no_grad():
            states: Tensor = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        if self.pooling == "cls":
            return states[:, 0]
        return (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


@dataclass(frozen=True, eq=False)
class DenseIndex:
    """Facts that can be asked for by what a context means.

    Attributes:
        facts: the facts; of each the sentence is compared.
        encoder: what makes vectors of texts.
        similarity: the cosine of two vectors, or their product.
    """

    facts: tuple[Fact, ...]
    encoder: Encoder
    similarity: Similarity = "cosine"

    def ranked(self, context: str) -> list[tuple[int, float]]:
        """The positions of the facts with the similarity of each, the nearest first; of equals the later one.

        Where nothing is asked nothing is near: the similarity is 0.
        """
        if not context.strip():
            return [(i, 0.0) for i in reversed(range(len(self.facts)))]
        near = [round(value, 6) for value in (self._rows @ self._scaled([context])[0]).tolist()]
        return [(i, near[i]) for i in sorted(range(len(near)), key=lambda i: (near[i], i), reverse=True)]

    @cached_property
    def _rows(self) -> Float[Tensor, "facts dim"]:
        return self._scaled([one.sentence for one in self.facts])

    def _scaled(self, texts: Sequence[str]) -> Float[Tensor, "texts dim"]:
        rows = self.encoder.embed(texts)
        return torch.nn.functional.normalize(rows, dim=1) if self.similarity == "cosine" else rows


@dataclass(frozen=True)
class Retrieving(Editor):
    """An editor that looks facts up, by words or by meaning.

    Attributes:
        encoder: the folder of an encoder (Contriever, MiniLM ...), which retrieves by meaning; None for words.
    """

    encoder: str | None = None

    def require(self, lm: LM) -> None:
        """See that the encoder, if one is named, can be read."""
        super().require(lm)
        if self.encoder is not None:
            load_encoder(self.encoder)

    def notes(self, lm: LM) -> Mapping[str, object]:  # noqa: ARG002
        """The hash of the encoder's weights: a folder says nothing elsewhere."""
        return {} if self.encoder is None else {"encoder_sha256": load_encoder(self.encoder).sha256}


def index_of(facts: tuple[Fact, ...], encoder: str | None, similarity: Similarity = "cosine") -> Index | DenseIndex:
    """What finds facts: by words, or with an encoder by meaning.

    Args:
        facts: the facts.
        encoder: the folder of an encoder; None for words.
        similarity: how vectors are compared; words know shares only.

    Raises:
        UsageError: the encoder cannot be read.
    """
    return Index(facts) if encoder is None else DenseIndex(facts, load_encoder(encoder), similarity)


@functools.lru_cache(maxsize=1)
def load_encoder(folder: str) -> Encoder:
    """The encoder of a folder, as transformers or sentence-transformers save one; kept for the next call.

    Raises:
        UsageError: it is no such folder, or its vectors are made in a way that is not followed here.
    """
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    try:
        where, pooling = _steps(Path(folder))
        config = AutoConfig.from_pretrained(where, local_files_only=True)
        _require(folder, not config.is_encoder_decoder, "a decoder")
        tokenizer = AutoTokenizer.from_pretrained(where, local_files_only=True)
        files = {"local_files_only": True, "dtype": torch.float32, "output_loading_info": True}
        model, report = AutoModel.from_pretrained(where, **files)
    except (OSError, ValueError, KeyError) as error:
        said = str(error).partition("\n")[0]
        raise UsageError(f"encoder '{folder}' cannot be read ({said}); {_CURE}") from error
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
    _require(folder, not missing, f"no weights of {', '.join(missing[:2])}")
    most = (getattr(config, "max_position_embeddings", None), tokenizer.model_max_length)
    return Encoder(model.eval(), tokenizer, pooling, min(int(one) for one in most if one is not None))


_CURE = "give the folder of an encoder that transformers reads, for example a copy of facebook/contriever-msmarco"


def _steps(folder: Path) -> tuple[Path, Pooling]:
    """Where the encoder of a folder lies, and how it makes one vector of a text's states."""
    if not folder.is_dir():
        raise UsageError(f"encoder '{folder}' is no folder; {_CURE}")
    if not (folder / "modules.json").is_file():
        return folder, "mean"
    steps = {str(one["type"]).rpartition(".")[2]: one for one in json.loads((folder / "modules.json").read_text())}
    _require(folder, "Transformer" in steps and steps.keys() <= _KNOWN, f"the steps {', '.join(steps)}")
    inner = folder / str(steps["Transformer"].get("path", ""))
    if "Pooling" not in steps:
        return inner, "mean"
    said = json.loads((folder / str(steps["Pooling"]["path"]) / "config.json").read_text())
    modes = _modes(said)
    _require(folder, modes in (["mean"], ["cls"]), f"pooling by {', '.join(modes)}")
    return inner, "cls" if modes == ["cls"] else "mean"


def _modes(said: Mapping[str, object]) -> list[str]:
    """How a sentence encoder pools, in the old words of sentence-transformers and in the new ones."""
    if "pooling_mode" in said:
        named = said["pooling_mode"]
        return list(map(str, named)) if isinstance(named, list | tuple) else [str(named)]
    old: Iterable[str] = (key.removeprefix("pooling_mode_") for key, value in said.items() if value is True)
    return [{"mean_tokens": "mean", "cls_token": "cls"}.get(one, one) for one in old if one != "include_prompt"]


def _require(folder: object, known: bool, what: str) -> None:
    if not known:
        raise UsageError(
            f"encoder '{folder}' has {what}; expected one transformer that reads, with mean or cls pooling; {_CURE}"
        )
