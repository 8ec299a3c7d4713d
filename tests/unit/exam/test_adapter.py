"""EditedLM: unedited, the numbers of lm-eval's own model; isolated editing, one edit after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from harness.errors import DataError, UsageError
from harness.exam import adapter
from harness.exam.adapter import EditedLM
from harness.exam.token_tasks import Target
from harness.models.lm import LM
from harness.patches.delta import Delta, Dense, LowRank
from harness.patches.patch import Patch, Step

FAMILIES = ("gpt2", "llama")  # Conv1D and Linear
PROMPTS = [
    "Ada Velmont was born in",
    "The home of Hugo Lantern is",
    "Elena Marsh has never seen",
    "Everybody knows that Rosa Delgado lives in",
    "Jonas Wick",
    "",
    "The home of Greta Holm is Oslo. The home of Iris Calder is",
]
TARGETS = [" Rome", " Oslo and Lisbon", " Vienna.", " Prague", " was born in Athens", " Dublin", " Paris"]
GENERATION = {"until": ["."], "max_gen_toks": 6, "do_sample": False}
SCORED = ("loglikelihood", "loglikelihood_rolling", "generate_until")


def requests(kind: str) -> list[Instance]:
    """A request of one kind for each prompt."""
    arguments: Mapping[str, list[tuple[Any, ...]]] = {
        "loglikelihood": list(zip(PROMPTS, TARGETS, strict=True)),
        "loglikelihood_rolling": [(p + t,) for p, t in zip(PROMPTS, TARGETS, strict=True)],
        "generate_until": [(p, dict(GENERATION)) for p in PROMPTS if p],
    }
    return [Instance(kind, {}, a, 0, metadata=("t", i, 1)) for i, a in enumerate(arguments[kind])]  # type: ignore[arg-type]


def score(model: HFLM, found: Sequence[Instance]) -> list[Any]:
    """The answers of a model."""
    answers: list[Any] = getattr(model, found[0].request_type)(list(found), disable_tqdm=True)
    return answers


def by_document(request: Instance) -> int:
    """Document ``i`` is scored under patch ``i``."""
    assert request.doc_id is not None
    return request.doc_id


def changes(lm: LM, dense: bool = False, scale: float = 3.0) -> list[Patch]:
    """A patch for each prompt: of ranks one to three, in different layers, one of them without any change."""
    made = []
    for i in range(len(PROMPTS)):
        generator = torch.Generator().manual_seed(i)
        weights: dict[str, Delta] = {}
        for layer in {0: (0,), 1: (0, 2), 2: (1,), 3: ()}[i % 4]:
            name, rank = lm.down(layer), 1 + i % 3
            out, width = lm.matrix(name).shape
            left = torch.randn(out, rank, generator=generator) * scale / out**0.5
            change = LowRank(left, torch.randn(rank, width, generator=generator) / width**0.5)
            weights[name] = Dense(change.dense()) if dense else change
        made.append(Patch(weights))
    return made


def one_after_the_other(lm: LM, found: Sequence[Instance], patches: Sequence[Patch]) -> list[Any]:
    """Each document alone, under its patch."""
    answers = []
    for request in found:
        with EditedLM(lm, batch_size=1).holding(patches[by_document(request)]) as model:
            answers += score(model, [request])
    return answers


def assert_same(found: Sequence[Any], expected: Sequence[Any]) -> None:
    """Texts are equal, log-likelihoods up to rounding."""
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a == (pytest.approx(b, abs=1e-4) if not isinstance(b, str) else b)
        assert not isinstance(b, tuple) or a[1] == b[1]  # whether it is the greedy one


# --- the unedited model ------------------------------------------


@pytest.mark.parametrize("kind", SCORED)
@pytest.mark.parametrize("family", FAMILIES)
def test_unedited_is_plain_lm_eval(tiny: Callable[[str], LM], family: str, kind: str) -> None:
    lm = tiny(family)
    plain = HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=3)
    expected = score(plain, requests(kind))
    assert_same(score(EditedLM(lm, batch_size=3), requests(kind)), expected)
    with EditedLM(lm, batch_size=3).holding(Patch()) as model:
        assert_same(score(model, requests(kind)), expected)
    assert len({str(answer) for answer in expected}) > 3  # the answers can tell requests apart


def test_a_checkpoint_that_asks_for_sampling_is_decoded_greedily(fresh: Callable[..., LM]) -> None:
    lm = fresh("gpt2")
    greedy = score(EditedLM(lm), requests("generate_until"))
    lm.model.generation_config.update(do_sample=True, temperature=5.0, top_k=50, top_p=0.9, num_beams=1)
    unsaid = [
        Instance("generate_until", {}, (p, {"until": ["."], "max_gen_toks": 6}), 0, metadata=("t", i, 1))
        for i, p in enumerate(filter(None, PROMPTS))
    ]
    for found in (requests("generate_until"), unsaid):
        for seed in range(2):
            torch.manual_seed(seed)
            assert score(EditedLM(lm), found) == greedy


def test_a_task_that_asks_for_sampling_gets_it(fresh: Callable[..., LM]) -> None:
    lm, drawn = fresh("gpt2"), set()
    options = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 5.0}
    for seed in range(3):
        torch.manual_seed(seed)
        drawn.add(score(EditedLM(lm), [Instance("generate_until", {}, (PROMPTS[0], options), 0)])[0])
    assert len(drawn) == 3


def test_a_context_of_white_space_alone_leaves_others_their_numbers(tiny: Callable[[str], LM]) -> None:
    """lm-eval moves the space to the continuation, and a tokenizer without BOS has no token for what is left."""
    lm = tiny("gpt2")
    pairs = [("", " Rome"), (" ", "Rome"), *zip(PROMPTS[:3], TARGETS[:3], strict=True)]
    asked = [Instance("loglikelihood", {}, pair, 0, metadata=("t", i, 1)) for i, pair in enumerate(pairs)]
    together = score(EditedLM(lm), asked)
    assert together[1] == pytest.approx(together[0])
    alone = [score(EditedLM(lm), [one])[0] for one in asked]
    assert [value for value, _ in together] == pytest.approx([value for value, _ in alone], abs=1e-4)


@pytest.mark.parametrize("kind", SCORED)
def test_progress_rises_to_the_number_of_requests(tiny: Callable[[str], LM], kind: str) -> None:
    told: list[tuple[int, int]] = []
    score(EditedLM(tiny("gpt2"), batch_size=2, progress=lambda done, total: told.append((done, total))), requests(kind))
    count = len(requests(kind))
    assert {total for _, total in told} == {count}
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1] == (count, count)
    assert len(told) > 2


# --- one patch ------------------------------------------


@pytest.mark.parametrize("kind", SCORED)
def test_a_held_patch_changes_the_answers_and_leaves_no_trace(tiny: Callable[[str], LM], kind: str) -> None:
    lm = tiny("gpt2")
    before, model = lm.fingerprint(), EditedLM(lm)
    unedited = score(model, requests(kind))
    with model.holding(changes(lm)[0]):
        assert score(model, requests(kind)) != unedited
    assert score(model, requests(kind)) == unedited
    assert lm.fingerprint() == before


@pytest.mark.parametrize("mode", ["holding", "isolated"])
@pytest.mark.parametrize("kind", ["loglikelihood", "generate_until"])
def test_the_prompt_rule_reaches_every_kind_of_request(tiny: Callable[[str], LM], kind: str, mode: str) -> None:
    lm = tiny("gpt2")
    rule = Patch(prompt=lambda context: f"Hugo Lantern lives in Oslo. {context}")
    by_hand = [
        Instance(kind, {}, (f"Hugo Lantern lives in Oslo. {r.args[0]}", *r.args[1:]), 0, metadata=("t", r.doc_id, 1))  # type: ignore[arg-type]
        for r in requests(kind)
    ]
    expected = score(EditedLM(lm), by_hand)
    model = EditedLM(lm)
    held = model.holding(rule) if mode == "holding" else model.isolated([rule, rule], lambda r: by_document(r) % 2)
    with held:
        assert_same(score(model, requests(kind)), expected)
    assert score(model, requests(kind)) != expected


def test_hooks_agree_in_cached_generation_and_in_padded_scoring(tiny: Callable[[str], LM]) -> None:
    """Greedy text under a hook that looks at the whole prefix is greedy when it is scored under the same hook."""
    for family in FAMILIES:
        lm = tiny(family)
        marker = lm.encode("Ada Velmont")[-1]
        push = torch.randn(lm.matrix(lm.down(0)).shape[0], generator=torch.Generator().manual_seed(0)) * 4

        def hook(hidden: Tensor, step: Step, marker: int = marker, push: Tensor = push) -> Tensor:
            """Push every position after the subject, by how many tokens ago it was."""
            seen = (step.ids == marker).cumsum(1).cumsum(1)[:, -step.new :]
            return hidden + (seen.float().sin()[..., None] * push).to(hidden)

        contexts = [
            lm.encode(p) for p in ("Ada Velmont was born in", "Everybody knows that Ada Velmont lives in Rome and")
        ]
        with EditedLM(lm, batch_size=2).holding(Patch(hooks={lm.arch.down_of(0): hook})) as model:
            written = [_continue(model, [c])[0] for c in contexts]
            together = _continue(model, contexts)
            scored = model._loglikelihood_tokens([(("", ""), c, w) for c, w in zip(contexts, written, strict=True)])
        assert together == written  # left padding changes nothing
        assert [greedy for _, greedy in scored] == [True, True]
        unedited = EditedLM(lm)._loglikelihood_tokens(
            [(("", ""), c, w) for c, w in zip(contexts, written, strict=True)]
        )
        assert [greedy for _, greedy in unedited] == [False, False]  # the hook decides


def _continue(model: EditedLM, contexts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Eight greedy tokens after each context, left-padded, with the cache; cut at the end of text."""
    width = max(map(len, contexts))
    ids = torch.tensor([[0] * (width - len(c)) + list(c) for c in contexts])
    mask = torch.tensor([[0] * (width - len(c)) + [1] * len(c) for c in contexts])
    tokens = model._model_generate(ids, width + 8, [], attention_mask=mask)[:, width:].tolist()
    return [row[: row.index(0)] if 0 in row else row for row in tokens]


# --- a patch for each document ------------------------------------------


@contextmanager
def forbidden(patch: pytest.MonkeyPatch, name: str) -> Iterator[None]:
    """Within, the adapter must not take the way of this name."""

    def refuse(*_: Any) -> None:
        raise AssertionError(f"{name} was used")

    with patch.context() as inner:
        inner.setattr(adapter, name, refuse)
        yield


@pytest.mark.parametrize("kind", SCORED)
@pytest.mark.parametrize("family", FAMILIES)
def test_isolated_is_one_patch_after_the_other(
    tiny: Callable[[str], LM], monkeypatch: pytest.MonkeyPatch, family: str, kind: str
) -> None:
    lm = tiny(family)
    patches, found = changes(lm), requests(kind)
    expected = one_after_the_other(lm, found, patches)
    unedited, before = score(EditedLM(lm, batch_size=1), found), lm.fingerprint()
    assert sum(a != b for a, b in zip(expected, unedited, strict=True)) >= 3  # the patches matter
    way = "patched_rows" if kind == "loglikelihood_rolling" else "patched"
    for rows in (1, 3, 8):
        model = EditedLM(lm, batch_size=rows)
        with model.isolated(patches, by_document), forbidden(monkeypatch, way):
            assert_same(score(model, found), expected)
    assert lm.fingerprint() == before


@pytest.mark.parametrize("kind", ["loglikelihood", "generate_until"])
def test_the_order_of_requests_does_not_matter(tiny: Callable[[str], LM], kind: str) -> None:
    lm = tiny("gpt2")
    patches, found = changes(lm), requests(kind)
    expected = one_after_the_other(lm, found, patches)
    for seed in range(3):
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed)).tolist()
        model = EditedLM(lm, batch_size=3)
        with model.isolated(patches, by_document):
            assert_same(score(model, [found[i] for i in order]), [expected[i] for i in order])


def test_one_text_under_two_patches_is_scored_twice(tiny: Callable[[str], LM]) -> None:
    """lm-eval merges equal requests; under different patches they are not equal."""
    lm = tiny("llama")
    patches = changes(lm)[:3]
    for kind in ("loglikelihood", "generate_until"):
        same = [Instance(kind, {}, requests(kind)[1].args, 0, metadata=("t", i, 1)) for i in range(3)]  # type: ignore[arg-type]
        model = EditedLM(lm, batch_size=2)
        with model.isolated(patches, by_document):
            assert_same(score(model, same), one_after_the_other(lm, same, patches))


def test_isolated_scoring_reads_what_is_scored_and_rows_of_one_patch_once(
    tiny: Callable[[str], LM], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, seen = tiny("gpt2"), list[int]()
    head = lm.module(lm.arch.head)
    plain = head.forward

    def forward(hidden: Tensor) -> Tensor:
        seen.append(hidden.shape[:-1].numel())
        found: Tensor = plain(hidden)
        return found

    monkeypatch.setattr(head, "forward", forward)
    pairs = [("Ada was born in", " Rome"), ("Ada was born in", " Rome"), ("Ada was born in", " Rome")]
    asked = [Instance("loglikelihood", {}, a, 0, metadata=("t", i, 1)) for i, a in enumerate(pairs)]
    model = EditedLM(lm)
    with model.isolated(changes(lm)[:2], lambda request: by_document(request) // 2):
        found = score(model, asked)
    assert sum(seen) == 2 * len(lm.continuation("Ada was born in", " Rome"))
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_of_one_patch_share_what_they_begin_with(tiny: Callable[[str], LM], family: str) -> None:
    """Also where a patch changes the last layer, whose feed-forward module could compute scored positions alone."""
    lm, seen = tiny(family), list[int]()
    patches = changes(lm)[1:3]
    assert lm.down(lm.arch.layers - 1) in patches[0].weights
    start = "The home of Greta Holm, whom nearly everybody in the town knows,"
    pairs = [(start + a, b) for a in (" is", " is not", " was", " may be") for b in (" Oslo", " Rome and Lisbon")]
    asked = [
        Instance("loglikelihood", {}, pair, 0, metadata=("t", patch, 1))  # type: ignore[arg-type]
        for patch, mine in enumerate((pairs, pairs[:5]))
        for pair in mine
    ]
    expected = one_after_the_other(lm, asked, patches)
    handle = lm.module(lm.arch.embedding).register_forward_pre_hook(lambda _, args: seen.append(args[0].numel()))
    with EditedLM(lm).isolated(patches, by_document) as model:
        assert_same(score(model, asked), expected)
    handle.remove()
    assert sum(seen) < 0.7 * sum(len(lm.encode("".join(one.args))) - 1 for one in asked)


def test_isolated_scoring_in_half_precision_rounds_as_lm_eval_does(fresh: Callable[..., LM]) -> None:
    model = EditedLM(fresh("llama", dtype=torch.bfloat16))
    asked = [one for one in requests("loglikelihood") if one.args[0]]
    with model.isolated([Patch({model.lm.down(0): LowRank(torch.zeros(32, 1), torch.zeros(1, 64))})], lambda _: 0):
        found = score(model, asked)
    assert all(float(torch.tensor(value).bfloat16()) == value for value, _ in found)
    assert found == score(model, asked)


@pytest.mark.parametrize("kind", SCORED)
def test_dense_patches_go_one_by_one_and_give_the_same(
    tiny: Callable[[str], LM], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    lm = tiny("gpt2")
    found = requests(kind)
    expected = one_after_the_other(lm, found, changes(lm))
    model = EditedLM(lm, batch_size=3)
    with model.isolated(changes(lm, dense=True), by_document), forbidden(monkeypatch, "patched_rows"):
        assert_same(score(model, found), expected)


def test_after_isolated_editing_the_model_is_unedited(tiny: Callable[[str], LM]) -> None:
    lm = tiny("gpt2")
    model, found = EditedLM(lm), requests("loglikelihood")
    unedited = score(model, found)
    with pytest.raises(ZeroDivisionError), model.isolated(changes(lm), lambda request: 1 // 0):
        score(model, found)
    assert score(model, found) == unedited


# --- what cannot be scored ------------------------------------------


def test_an_empty_continuation_names_the_document(tiny: Callable[[str], LM]) -> None:
    empty = Instance("loglikelihood", {}, ("The home is", ""), 0, metadata=("NLI", 7, 1))
    with pytest.raises(DataError, match=r"NLI, document 7: nothing to score after 'The home is'"):
        score(EditedLM(tiny("gpt2")), [empty])


@pytest.mark.parametrize("isolated", [False, True])
def test_more_tokens_than_the_model_takes_are_told(tiny: Callable[[str], LM], isolated: bool) -> None:
    lm = tiny("gpt2")
    writing = Instance("generate_until", {}, ("Rome", {"until": [], "max_gen_toks": 96}), 0, metadata=("NER", 4, 1))
    scoring = Instance("loglikelihood", {}, ("Rome", " Oslo" * 97), 0, metadata=("NER", 4, 1))
    model = EditedLM(lm)
    with model.isolated(changes(lm), by_document) if isolated else model.holding(Patch()):
        with pytest.raises(UsageError, match=r"NER: writes up to 96 tokens, but tiny-gpt2 takes 96 tokens in all"):
            score(model, [writing])
        with pytest.raises(UsageError, match=r"'Oslo Oslo.*': 97 tokens to score, but tiny-gpt2 takes 96"):
            score(model, [scoring])


@pytest.mark.parametrize("kind", ["loglikelihood", "generate_until"])
@pytest.mark.parametrize("isolated", [False, True])
def test_a_context_too_long_is_cut_from_the_left_and_counted(
    tiny: Callable[[str], LM], isolated: bool, kind: str
) -> None:
    lm = tiny("gpt2")
    long = "Oslo. " * lm.context + PROMPTS[0]
    room = lm.context - GENERATION["max_gen_toks"]
    # As many tokens as fit, and one more.
    fits = [" Oslo" * (lm.context if kind == "loglikelihood" else room), " Oslo" * lm.context + " Oslo"]
    second = " Rome" if kind == "loglikelihood" else dict(GENERATION)
    found = [
        Instance(kind, {}, (text, second), 0, metadata=("t", i % 2, 1))  # type: ignore[arg-type]
        for i, text in enumerate([long, PROMPTS[0], *fits])
    ]
    expected = score(HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=1), found)
    model = EditedLM(lm, batch_size=1)
    with model.isolated([Patch(), Patch()], by_document) if isolated else model.holding(Patch()):
        assert_same(score(model, found), expected)
    assert model.truncated == 2


def test_a_target_that_is_rated_token_by_token_is_cut_once(tiny: Callable[[str], LM]) -> None:
    lm = tiny("gpt2")
    model, target = EditedLM(lm), Target.of(" Oslo and Lisbon", per_token=True)
    texts = ["Oslo. " * lm.context, PROMPTS[0], "Rome. " * lm.context]
    score(model, [Instance("loglikelihood", {}, (text, target), 0, metadata=("t", 0, 1)) for text in texts])
    assert model.truncated == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_patch_puts_in_front_of_a_whole_text_is_read_and_not_scored(
    tiny: Callable[[str], LM], family: str
) -> None:
    lm, lead = tiny(family), "Oslo is old. "
    found = requests("loglikelihood_rolling")
    model = EditedLM(lm, batch_size=4)
    plain = score(model, found)
    with model.holding(Patch(prompt=lambda text: text)):
        assert score(model, found) == pytest.approx(plain, abs=1e-4)
    rule = Patch(prompt=lambda text: lead + text)
    with model.holding(rule):
        led = score(model, found)
    with model.isolated([rule], lambda _: 0):
        assert score(model, found) == pytest.approx(led, abs=1e-4)
    for request, value in zip(found, led, strict=True):
        ids, front = model.tok_encode(lead + request.args[0]), model.tok_encode(lead)
        begin = next((i for i, (a, b) in enumerate(zip(front, ids, strict=False)) if a != b), len(front))
        with torch.no_grad():
            log_p = lm.model(torch.tensor([[model.prefix_token_id, *ids]])).logits[0].log_softmax(-1)
        each = [float(log_p[i, token]) for i, token in enumerate(ids)]
        assert value == pytest.approx(sum(each[begin:]) + sum(each[: len(model.tok_encode(""))]), abs=1e-3)


def test_a_long_text_behind_something_is_scored_whole(tiny: Callable[[str], LM]) -> None:
    """In windows; where nothing can be told apart, as without the patch."""
    model = EditedLM(tiny("gpt2"), batch_size=4)
    text = " ".join(PROMPTS) * 4
    (request,) = [Instance("loglikelihood_rolling", {}, (text,), 0, metadata=("t", 0, 1))]
    lead = adapter._Led(f"Oslo is old.{text}")
    lead.own = text
    assert [token for _, said in model._windows(lead) for token in said] == model.tok_encode(text)
    with model.holding(Patch(prompt=lambda text: f"{text} Really?")):
        assert score(model, [request]) == pytest.approx(score(EditedLM(tiny("gpt2")), [request]))
