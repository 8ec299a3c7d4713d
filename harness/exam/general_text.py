"""The general text of the ball (G) and of the regulariser (R): chunks of equal length, cut from a stream of documents.

Published recipe (Hewitt et al. 2024, arXiv 2402.06155; john-hewitt/backpacks-flash-attn): OpenWebText, split with
``train_test_split(test_size=0.0005, seed=2357, shuffle=True)``; each document that is not empty, followed by the token
that ends a text; GPT-2's tokenizer; of the validation stream (G) and of the training stream (R) the first 1,500,000
tokens, cut into 3,000 chunks of 500 tokens, each decoded to text again.  :func:`build` writes both.  Neither file was
published; a rebuilt G must begin with :data:`FIRST`, and the unedited models' losses in the card of the task ``ball``
confirm it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import DataError
from harness.io import files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["COUNT", "FIRST", "SIZE", "build", "cut", "published", "token_chunks", "write_texts"]

SIZE, COUNT = 500, 3000
FIRST = "If you have ever thought that your charismatic, ambitious, ruthless"
"""How the published general text begins."""

NAMES = {"general": "val-chunked.jsonl", "regularisation": "trainval-chunked.jsonl"}
_SHARE, _SEED = 0.0005, 2357


def token_chunks(documents: Iterable[Sequence[int]], size: int = SIZE, count: int = COUNT) -> Iterator[list[int]]:
    """The first chunks of a stream of tokens; a rest that fills no chunk is dropped.

    Args:
        documents: the tokens of each document.
        size: tokens of a chunk.
        count: chunks at most.
    """
    held: list[int] = []
    made = 0
    for document in documents:
        held += document
        while len(held) >= size:
            yield held[:size]
            held = held[size:]
            made += 1
            if made == count:
                return


def cut(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, *, size: int = SIZE, count: int = COUNT) -> list[str]:
    """Documents as chunks of text, each document followed by the token that ends a text.

    Args:
        texts: the documents; empty ones are passed over.
        tokenizer: whose tokens are counted, and whose end-of-text token ends each document.
        size: tokens of a chunk.
        count: chunks at most.

    Raises:
        DataError: there is less text than one chunk.
    """
    end = tokenizer.eos_token or ""
    tokens = (tokenizer(f"{text}{end}", add_special_tokens=False)["input_ids"] for text in texts if text)
    found = [
        str(tokenizer.decode(chunk, clean_up_tokenization_spaces=False)) for chunk in token_chunks(tokens, size, count)
    ]
    if not found:
        raise DataError(f"the general text is shorter than one chunk of {size} tokens; give more of it")
    return found


def published(folder: str | Path, part: str) -> Path:
    """Where the chunks of the published recipe lie in a data folder: those of ``general`` or of ``regularisation``."""
    return Path(folder) / "canonical" / NAMES[part]


def build(folder: Path, size: int = SIZE, count: int = COUNT) -> list[Path]:
    """Make both published corpora from OpenWebText on the Hub (54 GB), and write them into a data folder.

    Args:
        folder: the data folder.
        size: tokens of a chunk.
        count: chunks of each corpus.

    Returns:
        the files that were written.

    Raises:
        DataError: the Hub cannot be reached, or what comes out does not begin as the published text does.
    """
    tokenizer = _gpt2()
    halves = _openwebtext().train_test_split(test_size=_SHARE, seed=_SEED, shuffle=True)
    written = []
    for part, split in (("general", "test"), ("regularisation", "train")):
        texts = cut((row["text"] for row in halves[split]), tokenizer, size=size, count=count)
        if part == "general" and not texts[0].startswith(FIRST):
            raise DataError(f"OpenWebText: the cut begins '{texts[0][:60]}', expected '{FIRST}'; its revision differs")
        written.append(write_texts(published(folder, part), texts))
    return written


def write_texts(path: Path, texts: Sequence[str]) -> Path:
    """Write chunks as rows of ``text``.

    Raises:
        UsageError: the file cannot be written.
    """
    files.require_writable(path.parent, "choose another folder")
    # Appears whole or not at all: trainings side by side may write the same file.
    files.write_whole(path, "".join(json.dumps({"text": text}) + "\n" for text in texts).encode())
    return path


def _gpt2() -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained("gpt2")
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise DataError(
            f"gpt2: the tokenizer cannot be had from the Hub ({reason}); use the stand-in of --data-dir"
        ) from error
    return tokenizer


def _openwebtext() -> Any:
    import datasets

    try:
        return datasets.load_dataset("openwebtext", split="train")
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:200]
        raise DataError(
            f"openwebtext: cannot be had from the Hub ({reason}); use the stand-in of --data-dir"
        ) from error
