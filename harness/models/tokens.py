"""How texts become tokens, decided in one place: what an editor edits is what is examined and what a model reads on.

A text stays open: some tokenizers close every text with a token that ends it (EOS, SEP), and neither a prompt nor a
continuation is at its end.  A prompt keeps the tokens that it has on its own, since these are what a model is given
when it writes; what follows is encoded as it stands behind them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["closing", "following", "open_ids", "opened", "prefixed", "tokenizer_text"]

_ANCHORS = ("\n", "x", "0", ".")
"""Texts behind which another is encoded where the prompt itself would merge with it."""


def tokenizer_text(tokenizer: PreTrainedTokenizerBase) -> str:
    """What a tokenizer makes of texts, as a text that names it, whatever it was asked last.

    A call that pads or cuts leaves that in it until the next one.
    """
    backend = tokenizer.backend_tokenizer
    if backend.padding is None and backend.truncation is None:
        return str(backend.to_str())
    bare = type(backend).from_str(backend.to_str())
    bare.no_padding()
    bare.no_truncation()
    return str(bare.to_str())


def closing(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens a tokenizer puts behind every text."""
    bare: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    full: list[int] = tokenizer("a")["input_ids"]
    for lead in range(len(full) - len(bare) + 1):
        if full[lead : lead + len(bare)] == bare:
            return len(full) - len(bare) - lead
    return 0


def open_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of texts that go on: with what the tokenizer puts in front, without what it puts behind."""
    if not texts:
        return []
    behind = closing(tokenizer)
    found = [list(ids[: len(ids) - behind]) for ids in tokenizer(list(texts))["input_ids"]]
    for i, text in enumerate(texts):
        if opened(tokenizer, text):
            found[i] = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return found


def opened(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Whether a text begins with the token that begins a text (BOS), as chat templates write it, and needs no other."""
    begin = tokenizer.bos_token
    return bool(begin) and text.startswith(str(begin))


def prefixed(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer itself puts a space in front of every text (SentencePiece, as in Llama 2)."""
    first = str(tokenizer.convert_ids_to_tokens(tokenizer("a", add_special_tokens=False)["input_ids"])[0])
    return first[:1] in ("\u2581", "\u0120")


def following(tokenizer: PreTrainedTokenizerBase, *, head: Sequence[int], joint: Sequence[int], text: str) -> list[int]:
    """The tokens of a text that continues a prompt.

    They are what follows the prompt's tokens in those of both together.  Where the two merge (a word that goes on, a
    vocabulary whose tokens reach across spaces), the text is encoded on its own; a tokenizer that would put a space in
    front of it is given something to put it in front of.

    Args:
        tokenizer: the tokenizer.
        head: the tokens of the prompt, ``[p]``.
        joint: those of the prompt with the text, ``[p + t]`` unless they merge.
        text: the text.
    """
    if len(joint) > len(head) and list(joint[: len(head)]) == list(head):
        return list(joint[len(head) :])
    for anchor in _ANCHORS if prefixed(tokenizer) else ():
        front, both = tokenizer([anchor, anchor + text], add_special_tokens=False)["input_ids"]
        if len(both) > len(front) and both[: len(front)] == front:
            return list(both[len(front) :])
    alone: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return alone
