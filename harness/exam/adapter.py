"""The lm-eval model that any editor comes wrapped in.

An edited and an unedited model are the same :class:`EditedLM`; only what it holds differs. Without a patch it is
lm-eval's own Hugging Face model, call for call. In isolated editing each document is scored under a patch of its own:
the requests of a task are grouped by document, and where the patches are low rank many documents share one forward
pass.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from jinja2 import TemplateError
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor, nn

from harness.editing.edit import Edit
from harness.errors import DataError, UsageError
from harness.exam.greedy import Writing
from harness.exam.passes import in_memory, too_large
from harness.exam.prompting import (
    Prompting,
    chat_template_text,
    has_system_turn,
    in_turns,
    rendered,
    template_sha256,
    worded,
)
from harness.exam.quiet import quiet_lm_eval
from harness.exam.span_scores import Apart, Encoded, Ranked, Span, Whole, score, whole
from harness.exam.thought import Thought, thought_through
from harness.exam.token_tasks import Forced, Target
from harness.exam.vllm_texts import VllmTexts
from harness.models.lm import LM
from harness.models.memory import Room
from harness.models.packing import shared_length
from harness.patches.patch import ChatRule, Patch, PromptRule, RowPatches, patched, patched_rows, shareable

__all__ = ["EditedLM", "Progress"]

Progress = Callable[[int, int], None]
"""Called with the number of requests done and the number of all."""

_Scored = tuple[tuple[str, str] | None, list[int], list[int]]
"""A request of lm-eval in tokens: its texts, those that are read, those that are scored."""

PatchOf = Callable[[Instance], int]
"""The index of the patch under which a request is scored."""


_GREEDY = {"until", "max_gen_toks", "do_sample", "temperature", "num_beams", "top_p", "top_k"}
"""What a task may ask of greedy decoding without a change of it."""

_HARMLESS = {
    *("_from_model_config", "transformers_version", "bos_token_id", "eos_token_id", "pad_token_id", "use_cache"),
    *("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "num_beams", "max_length", "max_new_tokens"),
    *("output_attentions", "output_hidden_states", "return_dict_in_generate", "cache_implementation"),
}
"""What a checkpoint may say of generation without a change of greedy decoding."""


class _Marked(str):
    """A context that remembers which patch its document is scored under, on its way through lm-eval's batching."""

    patch: int


class _Led(str):
    """A whole text behind what a patch puts in front of it, which is read and not scored."""

    own: str


class EditedLM(HFLM):  # type: ignore[misc]
    """An lm-eval model that can hold a patch for all documents, or one for each."""

    think_end_token: str | int | None

    def __init__(
        self,
        lm: LM,
        batch_size: int | None = None,
        progress: Progress | None = None,
        prompting: Prompting | None = None,
        texts: VllmTexts | None = None,
    ) -> None:
        """Wrap a model.

        Args:
            lm: the model; it is shared, not copied.
            batch_size: texts of one forward pass at most; None for as many as fit.
            progress: told how many requests are done.
            prompting: how it is asked; by default as the tasks say.
            texts: what writes texts in place of this model, which holds no patch then.

        Raises:
            UsageError: the tokenizer has no such chat template; or the checkpoint asks for another way to write than
                tasks do, which what writes in its place would not know of.
        """
        self.prompting = said = prompting or Prompting()
        with quiet_lm_eval():
            super().__init__(
                pretrained=lm.model,
                tokenizer=lm.tokenizer,
                batch_size=batch_size or 32,
                max_length=lm.context,
                think_end_token=None if said.think_end_token is None else str(said.think_end_token),
                enable_thinking=said.enable_thinking,
            )
        self.lm = lm
        named = said.apply_chat_template
        self._template = chat_template_text(lm.tokenizer, named, lm.name) if named else None
        self.texts = texts
        if texts is not None and self._decodes_otherwise():
            raise UsageError(
                f"{lm.name}: its generation_config.json asks for more than the likeliest token, which vLLM does not "
                "read; leave --backend out"
            )
        self.progress = progress
        self.rows = batch_size
        self.room = Room.of(lm)
        self.truncated = 0
        """Requests so far that were cut from the left to fit the model, as lm-eval does."""
        self._patches: Sequence[Patch] = ()
        self._patch_of: PatchOf | None = None
        self._rows: RowPatches | None = None
        self._row_patches: list[int] = []
        self._prompt: Callable[[str], str] | None = None
        self._done = self._total = 0

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text; of a tokenizer that has none, the one that begins one."""
        end = self.tokenizer.eos_token_id
        return self.lm.start if end is None else int(end)

    @property
    def prefix_token_id(self) -> int:
        """The token in front of a text that nothing stands in front of."""
        return self.lm.start

    @property
    def asked(self) -> dict[str, object]:
        """How it is asked, and by which chat template; empty where that is as the tasks say."""
        named = self.prompting.apply_chat_template
        template = {"chat_template": template_sha256(self.lm.tokenizer, named, self.lm.name)} if named else {}
        backend = {} if self.texts is None else {"backend": self.texts.name}
        return {**worded(vars(self.prompting)), **template, **backend}

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of a chat; a system turn that the template does not take is left out, as by lm-eval.

        Args:
            chat_history: the turns, each with its ``role`` and ``content``.
            add_generation_prompt: whether a turn of the assistant is begun; otherwise its last one goes on.

        Raises:
            UsageError: the template does not take the turns.
        """
        try:
            return self._rendered(chat_history, begun=add_generation_prompt)
        except TemplateError:
            turns = [turn for turn in chat_history if turn["role"] != "system"]
        try:
            return self._rendered(turns, begun=add_generation_prompt)
        except TemplateError as error:
            roles, reason = ", ".join(turn["role"] for turn in turns), " ".join(str(error).split())
            raise UsageError(
                f"{self.lm.name}: its chat template does not take the turns {roles} ({reason}); leave "
                "--apply-chat-template out, or give --fewshot-as-multiturn false"
            ) from error

    def _rendered(self, turns: Sequence[Mapping[str, str]], *, begun: bool) -> str:
        more = self.prompting.template_args
        return rendered(self.tokenizer, turns, self._template or "", more=more, begun=begun)

    @contextmanager
    def holding(self, patch: Patch) -> Iterator[EditedLM]:
        """Score everything under one patch."""
        with patched(self.lm, patch):
            self._prompt = patch.prompt
            try:
                yield self
            finally:
                self._prompt = None

    @contextmanager
    def isolated(self, patches: Sequence[Patch], patch_of: PatchOf) -> Iterator[EditedLM]:
        """Score each document under its own patch.

        Args:
            patches: the patches.
            patch_of: which of them a request's document is scored under.
        """
        self._patches, self._patch_of = patches, patch_of
        try:
            yield self
        finally:
            self._patches, self._patch_of = (), None

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """The log-likelihood of each continuation, and whether it is the greedy one; of a :class:`Target` more."""
        for request in requests:
            self._check_continuation(request)
        self._require_no_thinking(requests)
        kinds = {kind for request in requests for kind in (Target, Apart) if isinstance(request.args[1], kind)}
        if Target in kinds:
            return self._each(requests, self._targets)
        return self._each(requests, self._apart if Apart in kinds else super().loglikelihood)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """The log-likelihood of each whole text; what a patch puts in front of it is read and not scored."""
        return self._each(requests, self._rolling, share=False)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """The continuation of each context; of a :class:`Thought` what is thought, what closes it, and the answer."""
        asked = [self._budgeted(request) for request in requests]
        if not any(isinstance(request.args[0], Thought) for request in asked):
            return self._continued(asked)
        mark = self.think_end_token
        if self.prompting.thinking_budget is not None:
            self.think_end_token = None  # lm-eval would cut off the thought, which is still to be answered after
        try:
            return thought_through(asked, self._continued)
        finally:
            self.think_end_token = mark

    def _continued(self, requests: list[Instance]) -> list[str]:
        for request in requests:
            self._check_room(request)
        return self._each(requests, self._written)

    def _budgeted(self, request: Instance) -> Instance:
        """A request with as long a thought as the plan allows; one that is not thought about as it is."""
        context = self.thought_of(request.args[0])
        return request if context is request.args[0] else replace(request, arguments=(context, *request.args[1:]))

    def thought_of(self, context: str) -> str:
        """A context as it is continued: a :class:`Thought` where a plan has a budget and the question is thought about.

        Args:
            context: of a request to generate.
        """
        budget, mark = self.prompting.thinking_budget, self.prompting.think_end_token
        if budget is None:
            return context
        if isinstance(context, Thought):
            return Thought.of(str(context), tokens=budget, closes=context.closes, told=context.told)
        if mark is None:
            return context
        token = int(mark) if str(mark).isdecimal() else None
        ends = str(mark) if token is None else self.tok_decode([token], skip_special_tokens=False)
        return Thought.of(str(context), tokens=budget, closes=ends, told=False)

    def _each(self, requests: list[Instance], score: Callable[..., list[Any]], share: bool = True) -> list[Any]:
        """Score requests under the patch, or the patches, that are held."""
        self._done, self._total = 0, len(requests)
        if self._patch_of is None:
            results = score([self._prompted(r, self._prompt) for r in requests], disable_tqdm=True)
        elif share and all(shareable(patch) for patch in self._patches):
            results = self._side_by_side(requests, score)
        else:
            results = self._one_by_one(requests, score)
        self._advance(self._total - self._done)
        return results

    def _side_by_side(self, requests: list[Instance], score: Callable[..., list[Any]]) -> list[Any]:
        assert self._patch_of is not None
        self._row_patches = [self._patch_of(request) for request in requests]
        marked = [self._marked(r, patch) for r, patch in zip(requests, self._row_patches, strict=True)]
        with patched_rows(self.lm, self._patches) as rows:
            self._rows = rows
            try:
                return score(marked, disable_tqdm=True)
            finally:
                self._rows = None

    def _one_by_one(self, requests: list[Instance], score: Callable[..., list[Any]]) -> list[Any]:
        assert self._patch_of is not None
        groups: dict[int, list[int]] = defaultdict(list)
        for position, request in enumerate(requests):
            groups[self._patch_of(request)].append(position)
        results: list[Any] = [None] * len(requests)
        for index, positions in groups.items():
            patch = self._patches[index]
            with patched(self.lm, patch):
                scored = score([self._prompted(requests[p], patch.prompt) for p in positions], disable_tqdm=True)
            for position, result in zip(positions, scored, strict=True):
                results[position] = result
        return results

    def _apart(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """The log-likelihood of continuations that are tokenised apart from their context, and of whole texts."""
        pairs = [
            (str(context), str(said)) for context, said in (r.args for r in requests) if not isinstance(said, Whole)
        ]
        encoded = Encoded.of(self.lm.tokenizer, pairs)
        found = [self._spans(request, encoded) for request in requests]
        owners = [i for i, spans in enumerate(found) for _ in spans]
        marks = None if self._rows is None else [self._row_patches[i] for i in owners]
        scored = score(
            self.lm,
            [s for spans in found for s in spans],
            rows=self.rows,
            marks=marks,
            before=self._carry,
            done=self._advance,
            room=self.room,
        )
        results = [(0.0, True)] * len(requests)
        for i, (value, greedy) in zip(owners, scored, strict=True):
            results[i] = (results[i][0] + value, results[i][1] and greedy)
        return results

    def _targets(self, requests: list[Instance], disable_tqdm: bool = True) -> list[Forced]:
        """How each target is rated, in the tokens of the edit: those of the prompt, and those that follow them."""
        found = [self._steps(request) for request in requests]
        owners = [i for i, steps in enumerate(found) for _ in steps]
        marks = [self._row_patches[i] for i in owners] if self._rows is not None else []
        self.truncated += sum(any(map(self._loses_its_beginning, steps)) for steps in found)
        scored = iter(self._loglikelihood_ids([step for steps in found for step in steps], marks))
        results = []
        for steps in found:
            rated = [(*next(scored), len(said)) for _, _, said in steps]
            hits = sum(tokens for _, greedy, tokens in rated if greedy)
            results.append(Forced(math.fsum(r[0] for r in rated), sum(tokens for *_, tokens in rated), hits))
        return results

    def _steps(self, request: Instance) -> list[_Scored]:
        """What is scored of a target, after which tokens: all of it at once, or one token after the other."""
        context, target = str(request.args[0]), request.args[1]
        head = self.lm.encode(context) or [self.prefix_token_id]
        try:
            tail = self.lm.continuation(context, str(target))
        except DataError as error:
            raise DataError(f"{request.task_name}, document {request.doc_id}: {error}") from None
        texts = (context, str(target))
        if not target.per_token:
            return [(texts, head, tail)]
        return [(texts, [*head, *tail[:t]], [token]) for t, token in enumerate(tail)]

    def _rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        windows = [(i, *window) for i, request in enumerate(requests) for window in self._windows(request.args[0])]
        scored = self._loglikelihood_tokens([(None, context, said) for _, context, said in windows])
        results = [0.0] * len(requests)
        for (i, *_), (value, _greedy) in zip(windows, scored, strict=True):
            results[i] += value
        return results

    def _windows(self, text: str) -> Iterator[tuple[list[int], list[int]]]:
        """lm-eval's windows of a text, context and scored tokens, without those of what stands in front of it."""
        ids = self.tok_encode(text)
        lead = text[: len(text) - len(text.own)] if isinstance(text, _Led) else ""
        left = shared_length(self.tok_encode(lead), ids) if lead else 0
        own = len(self.tok_encode(""))
        if left and own:  # what the tokenizer itself puts in front of every text counts, as it does without a patch
            yield [self.prefix_token_id], ids[:own]
        for window in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1):
            context, said = make_disjoint_window(window)
            read, left = said[:left], max(0, left - len(said))
            if len(read) < len(said):
                yield [*context, *read], said[len(read) :]

    def _written(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """The continuation of each context: greedy ones side by side, others as transformers writes them; or vLLM's."""
        if self.texts is not None:
            self.truncated += sum(self._is_cut(request) for request in requests)
            mark = self.think_end_token
            return self.texts.write(requests, thought_ends=None if mark is None else str(mark))
        results = [""] * len(requests)
        alike: dict[str, list[int]] = defaultdict(list)
        for i, request in enumerate(requests):
            alike[repr(request.args[1])].append(i)
        for places in alike.values():
            some = [requests[i] for i in places]
            found = self._written_greedily(some, None if self._rows is None else [self._row_patches[i] for i in places])
            for i, text in zip(places, self._written_plainly(some) if found is None else found, strict=True):
                results[i] = text
        return results

    def _written_greedily(self, requests: Sequence[Instance], marks: Sequence[int] | None) -> list[str] | None:
        """Continuations of one kind; None where something else than the likeliest token is asked for."""
        asked = normalize_gen_kwargs(dict(requests[0].args[1]), self.max_gen_toks)
        if set(asked) - _GREEDY or asked["do_sample"] or self._decodes_otherwise() or self.think_end_token:
            return None
        end = self.tok_decode([self.eot_token_id], skip_special_tokens=False)
        until = handle_stop_sequences(asked["until"], eos=end)
        room, texts = self.max_length - asked["max_gen_toks"], [self.tok_encode(str(r.args[0])) for r in requests]
        writing = Writing(
            self.lm,
            [tuple(ids[-room:]) or (self.prefix_token_id,) for ids in texts],
            asked["max_gen_toks"],
            self._ends,
            lambda ids: any(stop in self.tok_decode(ids) for stop in until if stop),
            marks or [0] * len(requests),
            self.room,
            self.rows,
            self._carry,
            self._advance,
        )
        if not writing.can():
            return None
        self.truncated += sum(len(ids) > room for ids in texts)
        return [postprocess_generated_text(self.tok_decode(ids), until, None) for ids in writing.texts()]

    def _is_cut(self, request: Instance) -> bool:
        """Whether a context loses its beginning, so that what is written behind it fits."""
        asked = normalize_gen_kwargs(dict(request.args[1]), self.max_gen_toks)
        return bool(len(self.tok_encode(str(request.args[0]))) > self.max_length - asked["max_gen_toks"])

    def _decodes_otherwise(self) -> bool:
        """Whether the checkpoint asks for something else than the likeliest token even of greedy decoding."""
        return bool(set(self.lm.model.generation_config.to_diff_dict()) - _HARMLESS)

    @property
    def _ends(self) -> frozenset[int]:
        """The tokens that end a text."""
        return self.lm.end_tokens | {self.eot_token_id}

    def _written_plainly(self, requests: list[Instance]) -> list[str]:
        """Continuations as transformers writes them; of fewer texts at once where memory runs out."""
        cut = self.truncated
        while True:
            self.truncated = cut
            found = in_memory(functools.partial(super().generate_until, requests, disable_tqdm=True))
            if found is not None:
                return list(found)
            if self.batch_size == 1:
                raise too_large(self.lm, max((tuple(self.tok_encode(str(r.args[0]))) for r in requests), key=len))
            self.batch_size_per_gpu = max(1, self.batch_size // 2)
            self.room.release()

    def _spans(self, request: Instance, encoded: Encoded) -> list[Span]:
        context, continuation = request.args
        if isinstance(continuation, Whole):
            return whole(self.lm.tokenizer, str(continuation), self.max_length, lead=str(context))
        try:
            found = encoded.span(str(context), str(continuation))
        except DataError as error:
            raise DataError(f"{request.task_name}, document {request.doc_id}: {error}") from None
        self._check_length(continuation, found.scored)
        return [replace(found, ranked=isinstance(continuation, Ranked))]

    def _carry(self, marks: Sequence[int]) -> None:
        """Let the rows of the next forward pass carry these patches, where each document has its own."""
        if self._rows is not None:
            self._rows.index = torch.tensor(list(marks))

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = True,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        self.truncated += sum(map(self._loses_its_beginning, requests))
        return self._loglikelihood_ids(requests, self._row_patches)

    def _loses_its_beginning(self, scored: _Scored) -> bool:
        """Whether tokens are more than the model reads; a window of a rolling text, which has no texts, always fits."""
        texts, context, said = scored
        return texts is not None and len(context) + len(said) > self.max_length + 1

    def _loglikelihood_ids(self, requests: list[_Scored], marks: Sequence[int]) -> list[tuple[float, bool]]:
        """The log-likelihood of tokens after others; ``marks`` names the patch of each where they have their own."""
        for texts, _, continuation in requests:
            self.lm.require_known(continuation)
            if texts is not None:
                self._check_length(texts[1], len(continuation))
        # lm-eval moves white space at the end of a context to what follows, which may leave the context no token.
        read = [context or [self.prefix_token_id] for _, context, _ in requests]
        spans = [Span((*head, *said), len(said)) for head, (*_, said) in zip(read, requests, strict=True)]
        return score(
            self.lm,
            spans,
            rows=self.rows,
            marks=None if self._rows is None else marks,
            before=self._carry,
            done=self._advance,
            rounded=True,
            room=self.room,
        )

    def _model_call(self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        logits: Tensor = super()._model_call(inps, attn_mask, labels)
        self._advance(inps.shape[0])
        return logits

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **generation_kwargs: Any) -> Tensor:
        # A checkpoint's generation_config may ask for sampling; unless the task does, decoding is greedy.
        generation_kwargs.setdefault("do_sample", False)
        if not generation_kwargs["do_sample"]:
            generation_kwargs.update(num_beams=1, temperature=None, top_p=None, top_k=None)
        mask = generation_kwargs.get("attention_mask")
        if mask is None or bool(mask.all()) or self._padding_is_unseen:
            tokens: Tensor = super()._model_generate(context, max_length, stop, **generation_kwargs)
        else:
            tokens = self._written_apart(context, max_length, stop, **generation_kwargs)
        self._advance(context.shape[0])
        return tokens

    def _written_apart(
        self, context: Tensor, max_length: int, stop: list[str], *, attention_mask: Tensor, **generation_kwargs: Any
    ) -> Tensor:
        """As :meth:`_model_generate`, each row without its padding."""
        index, written = None if self._rows is None else self._rows.index, []
        for row, (ids, mask) in enumerate(zip(context, attention_mask, strict=True)):
            if self._rows is not None and index is not None:
                self._rows.index = index[row : row + 1]
            own, padding = ids[mask.bool()][None], int((mask == 0).sum())
            given = {**generation_kwargs, "attention_mask": torch.ones_like(own)}
            found = super()._model_generate(own, max_length - padding, stop, **given)[0]
            written.append(torch.cat([ids[:padding], found]))
        return nn.utils.rnn.pad_sequence(written, batch_first=True, padding_value=self.lm.pad)

    @functools.cached_property
    def _padding_is_unseen(self) -> bool:
        """Whether what the model writes does not depend on the padding in front of it; it does in RWKV and MiniMax.

        Tried on one text, the logits of the first tokens that are written with and without padding.
        """
        text = torch.tensor([[token % self.lm.vocabulary for token in range(5, 17)]], device=self.lm.device)
        front = torch.full((1, 3), self.lm.pad, device=self.lm.device)
        ids, mask = torch.cat([front, text], 1), torch.cat([torch.zeros_like(front), torch.ones_like(text)], 1)
        options = {"min_new_tokens": 3, "max_new_tokens": 3, "output_logits": True, "return_dict_in_generate": True}
        index = None if self._rows is None else self._rows.index
        if self._rows is not None and index is not None:
            self._rows.index = index[:1]
        with self.lm.plain_generation(), torch.no_grad():
            plain, padded = (
                self.model.generate(row, attention_mask=seen, do_sample=False, pad_token_id=self.lm.pad, **options)
                for row, seen in ((text, torch.ones_like(text)), (ids, mask))
            )
        if self._rows is not None:
            self._rows.index = index
        loose = 1e-3 if self.lm.model.dtype in (torch.float32, torch.float64) else 0.1
        first, second = (torch.stack(found.logits).float() for found in (plain, padded))
        return float((first - second).norm()) <= loose * float(first.norm())

    def tok_encode(self, string: str, *given: Any, **options: Any) -> list[int]:
        """The tokens of a text that goes on: what a tokenizer puts behind every text is none of them.

        Each context comes again with other continuations, and all of them at every stop.

        Args:
            string: the text.
            *given: as lm-eval's adapter of Hugging Face models takes them.
            **options: as there.
        """
        ids = list(self._encoded(str(string), *given, **options))
        special = len(ids) > len(self._encoded(str(string), add_special_tokens=False)) if self.lm.closing else False
        return ids[: len(ids) - self.lm.closing] if special else ids

    @functools.cached_property
    def _encoded(self) -> Callable[..., list[int]]:
        return functools.lru_cache(maxsize=8192)(super().tok_encode)

    def tok_batch_encode(
        self,
        strings: Sequence[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Encode contexts; count those that are cut, and in isolated editing note whose rows the passes compute.

        Args:
            strings: the contexts of one batch.
            padding_side: where the shorter ones are filled up, ``left`` or ``right``.
            left_truncate_len: how many tokens of each are kept, counted from its end; None keeps all.
            truncation: whether the tokenizer cuts at its own limit.

        Returns:
            the token ids and the mask of those that are no padding, both ``[text, position]``.
        """
        if self._rows is not None:
            self._rows.index = torch.tensor([s.patch for s in strings if isinstance(s, _Marked)])
        plain = [str(s) for s in strings]
        encoded: tuple[Tensor, Tensor]
        if self.lm.closing:
            padded = self.tokenizer.pad(
                {"input_ids": [self.tok_encode(text) for text in plain]}, padding_side=padding_side, return_tensors="pt"
            )
            encoded = padded["input_ids"], padded["attention_mask"]
        else:
            encoded = super().tok_batch_encode(plain, padding_side, truncation=truncation)
        if not left_truncate_len:
            return encoded
        ids, mask = encoded
        self.truncated += int((mask.sum(1) > left_truncate_len).sum())
        return ids[:, -left_truncate_len:], mask[:, -left_truncate_len:]

    def _check_continuation(self, request: Instance) -> None:
        context, continuation = request.args
        if not continuation:
            raise DataError(f"{request.task_name}, document {request.doc_id}: nothing to score after '{context[-40:]}'")

    def _require_no_thinking(self, requests: Sequence[Instance]) -> None:
        """Refuse to score an answer that a thought would have to stand in front of, as lm-eval does."""
        if self.prompting.enable_thinking:
            names = ", ".join(sorted({str(request.task_name) for request in requests}))
            raise UsageError(
                f"{names}: scores given answers, in front of which no thought is written; leave --enable-thinking out, "
                "or ask tasks that generate (of an edit set: --exam generation)"
            )

    def _check_length(self, text: str, tokens: int) -> None:
        if tokens > self.max_length:
            raise UsageError(
                f"'{text.strip()[:40]}...': {tokens} tokens to score, but {self.lm.name} takes {self.max_length}; "
                "leave its task out of --tasks, or take a model with a longer context"
            )

    def _check_room(self, request: Instance) -> None:
        wanted = normalize_gen_kwargs(dict(request.args[1]), self.max_gen_toks)["max_gen_toks"]
        if wanted >= self.max_length:
            raise UsageError(
                f"{request.task_name}: writes up to {wanted} tokens, but {self.lm.name} takes {self.max_length} tokens "
                "in all; leave it out of --tasks, or take a model with a longer context"
            )

    def _prompted(self, request: Instance, rule: Callable[[str], str] | None) -> Instance:
        if rule is None:
            return request
        text, *others = request.args
        read = self._changed(str(text), rule)
        if request.request_type == "loglikelihood_rolling":
            if not read.endswith(text):  # what the text became cannot be told from what stands around it
                return request
            read = _Led(read)
            read.own = text
        return replace(request, arguments=(read, *others))

    def _changed(self, text: str, rule: PromptRule) -> str:
        """What a rule makes of a text: of the questions of a chat, or of its system turn."""
        before, asked, after = self._in_turn(text)
        if not isinstance(rule, ChatRule):
            return before + rule(asked) + after
        system = bool(before) and self._has_system_turn
        return rule.in_chat(
            asked, lambda told: (self._around(told.strip())[0] if system else before + told) + asked + after
        )

    def _in_turn(self, text: str) -> tuple[str, str, str]:
        """What stands in front of the first question of a chat, the questions, and what stands behind the last one.

        A patch that reads or changes the prompt does so inside of the turn of the user, where there is one.
        """
        before, after = self._turn
        if not (text.startswith(before) and text.endswith(after) and len(text) >= len(before) + len(after)):
            return "", text, ""
        return before, text[len(before) : len(text) - len(after)], after

    @functools.cached_property
    def _turn(self) -> tuple[str, str]:
        """What the chat template puts around a question; nothing where there is no template."""
        return self._around() if self._template is not None else ("", "")

    def _around(self, told: str = "") -> tuple[str, str]:
        """What the chat template puts around a question when the system turn says something more."""
        said = "\n\n".join(filter(None, (self.prompting.system_instruction, told)))
        asked = replace(self.prompting, system_instruction=said or None)
        (edit,) = in_turns([Edit("", "question", None, "answer")], self.lm.tokenizer, asked, model=self.lm.name)
        return edit.before, edit.after

    @functools.cached_property
    def _has_system_turn(self) -> bool:
        return has_system_turn(self.lm.tokenizer, self.prompting, self.lm.name)

    def _marked(self, request: Instance, patch: int) -> Instance:
        context = _Marked(request.args[0])
        context.patch = patch
        return replace(request, arguments=(context, *request.args[1:]))

    def _advance(self, rows: int) -> None:
        self._done = min(self._done + rows, self._total)
        if self.progress is not None:
            self.progress(self._done, self._total)
