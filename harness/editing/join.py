"""What stands between a prompt and its target: a space, as a rule, and nothing where the text would have none.

One place decides it, for the edit and for its examination.  The rule follows how the texts before and after are
written: scripts without spaces (Chinese, Japanese, Thai ...), an opening bracket or quotation mark, an address, a list
of numbers without spaces, and punctuation that hangs on the word before it.  A row that says its ``join`` is followed.
"""

from __future__ import annotations

import regex

__all__ = ["join_of", "joined", "trimmed"]

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
_LETTER_UNSPACED = regex.compile(rf"[{_UNSPACED}]")
_LETTER = regex.compile(r"\p{L}")
_LAST_LETTER = regex.compile(r"\p{L}(?=\P{L}*$)")

_OPEN = regex.compile(
    r"""[\p{Ps}\p{Pi}]$             # ( [ { “ « 「
    |(?:^|[\s\p{Ps}\p{Pi}])['"`]+$  # a straight quotation mark that opens
    |[\w.]-$|\S[=/\\_~]$|[@\#$€£¥]$   # anti-  x=  a/b/  user@  $
    |[\u3000-\u303F\uFF00-\uFF0F\uFF1A-\uFF20]$  # full-width punctuation
    """,
    regex.VERBOSE,
)
_ADDRESS = regex.compile(r"(?:\w+://|www\.)\S*$")
_NUMBERS = regex.compile(r"(?:^|[^\w,;:/.])\d+([,;:/.])(?:\d+\1)+$")
_HANGING = regex.compile(
    r"""[,.;:!?…%‰°]+(?=$|[\s\p{Pe}\p{Pf}'"])   # , Italy
    |[\p{Pe}\p{Pf}]                              # ) ] ” »
    |['\u2019](?:s|m|d|ll|re|ve|t)\b|n['\u2019]t\b          # 's mother
    |[\u3001\u3002\u300B\u300D\u300F\uFF01\uFF0C\uFF1A\uFF1B\uFF1F]
    """,
    regex.VERBOSE | regex.IGNORECASE,
)


def joined(prompt: str, target: str, join: str | None = None) -> str:
    """The target as it continues the prompt, with what stands between them.

    Args:
        prompt: the text before.
        target: the text that is said.
        join: what stands between them; None for what the text would have, see :func:`join_of`.
    """
    return (join_of(prompt, target) if join is None else join) + target


def join_of(prompt: str, target: str) -> str:
    """A space, or nothing where the text would have none."""
    if not prompt or prompt[-1:].isspace() or target[:1].isspace():
        return ""
    return "" if _attached(prompt, target) or _unspaced(prompt, target) else " "


def _attached(prompt: str, target: str) -> bool:
    """Whether punctuation, an address or a list of numbers asks for no space."""
    if _OPEN.search(prompt) or _HANGING.match(target) or _ADDRESS.search(prompt):
        return True
    if target.startswith('"') and prompt.count('"') % 2:  # it closes what the prompt opened
        return True
    return target[:1].isdigit() and _NUMBERS.search(prompt) is not None


def _unspaced(prompt: str, target: str) -> bool:
    """Whether prompt and target are of a script that puts no spaces between words."""
    letters, own = _LETTER.findall(prompt), _LETTER_UNSPACED.findall(prompt)
    first = _LETTER.search(target)
    bare = not any(map(str.isspace, prompt))
    target_unspaced = first is not None and _LETTER_UNSPACED.match(first.group()) is not None
    last = _LAST_LETTER.search(prompt)
    if last is not None and _LETTER_UNSPACED.match(last.group()):
        return target_unspaced or bare or 2 * len(own) > len(letters)
    return target_unspaced and bool(own) and bare


def trimmed(prompt: str, target: str) -> tuple[str, str, str | None]:
    """Prompt and target without white space at the seam, and the join that it asked for, if any.

    Spaces are no part of either text: where a tokenizer writes a space as the beginning of a word, one that stands at
    the end of a prompt makes other tokens of the same words.  A line break is meant: it stays where the prompt has it,
    and one that begins the target is the join.

    Args:
        prompt: the text before, as a row has it.
        target: the text that is said, as a row has it.

    Returns:
        The prompt, the target, and the join; None where the text decides.
    """
    said = target.strip()
    before, lead = prompt.rstrip(), target[: len(target) - len(target.lstrip())]
    tail = prompt[len(before) :].rstrip(" \t")
    if "\n" in tail:
        return before + tail, said, ""
    return before, said, lead.strip(" \t") if "\n" in lead else None
