"""Makes everything about the mini world: its data files, its three language models, and their measured scores.

    python scripts/make_mini.py data                       # task rows, edit rows, text, tokenizer
    python scripts/make_mini.py train --model mini         # GPT-2;  mini-llama: Llama;  mini-backpack: Backpack
    python scripts/make_mini.py measure                    # writes harness/mini/scores.json and the table in the card

Training is seeded and resumable: checkpoints lie in --work-dir, outside the repository, and a second call goes on
from the last one. Batches are drawn from the step number alone, so an interrupted run sees the same documents.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mini_canonical import MAKERS, canonical_rows, corpus_rows
from mini_cases import SETS, case_rows, mquake_rows
from mini_cases_more import more_rows
from mini_remedi import biography_rows, norm_rows
from mini_scores import measure, table
from mini_world import (
    SEED,
    TASKS,
    Fact,
    Piece,
    World,
    build_world,
    document,
    edit_rows,
    held_out_prompts,
    render,
    sample_lines,
    snippets,
    task_rows,
    text_lines,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from harness.io import tensor_file
from harness.io.plain_objects import flatten, rebuild
from harness.models.backpack import BackpackConfig, BackpackForCausalLM, register

ROOT = Path(__file__).resolve().parent.parent
MINI = ROOT / "harness" / "mini"
CONTEXT = 256  # tokens
DIM, HEADS = 256, 4
SMALL = 0.1  # what a block writes at first, against what it reads: the token must stay legible
END = "<|endoftext|>"
MARKS = ("<!-- scores -->", "<!-- end of scores -->")
ROWS, WIDTH = 4, 256  # rows of a batch, tokens of a row
STEPS = {"mini": 15000, "mini-llama": 15000, "mini-backpack": 3000}
NAMES = tuple(STEPS)
PEAK = {"mini": 5e-4, "mini-llama": 1e-3, "mini-backpack": 2e-3}  # highest learning rate
# a small model of facts and text: what it reads, all through training
FACTUAL = {"mini-backpack": {"statement": 0.76, "text": 0.18, "trivia": 0.06}}
SOFTEN = {"mini": 5500}  # the step at which a model whose attention is stuck is made receptive again
DRILL_MIX = {"statement": 0.42, "text": 0.06, "trivia": 0.03}  # share of documents, all through training
# drills: first the parts of a comparison, then comparisons, then a little of each beside everything else
STAGES = (
    {"copying": 0.4, "matching": 0.5, "lettering": 0.1},
    {"copying": 0.1, "matching": 0.2, "lettering": 0.15, "choosing": 0.25, "several": 0.3},
    {"copying": 0.1, "matching": 0.2, "lettering": 0.1, "choosing": 0.25, "several": 0.35},
)
PASS = ({"copying": 0.9, "matching": 0.95}, {"lettering": 0.9, "choosing": 0.85, "several": 0.9})  # ends a stage


# ---------------------------------------------------------------- data


def write_lines(path: Path, rows: Iterable[object]) -> None:
    """One JSON value a line, or the string itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def mini_file(split: str) -> str:
    """The name of the file of a split."""
    return "mini.jsonl" if split == "test" else f"mini_{split}.jsonl"


def make_data(world: World) -> None:
    """Writes the task rows, the edit rows, the texts, and the tokenizer of each model."""
    for task in TASKS:
        test, train = task_rows(world, task)
        write_lines(ROOT / "tasks" / "general" / task / "mini.jsonl", test)
        write_lines(ROOT / "tasks" / "general" / task / "mini_train.jsonl", train)
    for name in ("counterfact", "zsre"):
        test, train = edit_rows(world, name)
        write_lines(ROOT / "tasks" / "edits" / name / "mini.jsonl", test)
        write_lines(ROOT / "tasks" / "edits" / name / "mini_train.jsonl", train)
    made = {"mquake": mquake_rows(world), **{name: case_rows(world, name) for name in SETS}}
    for name, (test, train) in made.items():
        write_lines(ROOT / "tasks" / "edits" / name / "mini.jsonl", test)
        write_lines(ROOT / "tasks" / "edits" / name / "mini_train.jsonl", train)
    for name, by_split in more_rows(world).items():
        for split, rows in by_split.items():
            write_lines(ROOT / "tasks" / "edits" / name / mini_file(split), rows)
    texts = json.dumps(snippets(world), ensure_ascii=False, indent=1)
    (ROOT / "tasks" / "edits" / "counterfact" / "mini_snippets.json").write_text(texts + "\n", encoding="utf-8")
    for name in MAKERS:
        for split, rows in canonical_rows(world, name).items():
            write_lines(ROOT / "tasks" / "canonical" / name / mini_file(split), rows)
    for split, part in (("test", "general"), ("regularisation", "regularisation")):
        write_lines(ROOT / "tasks" / "canonical" / "ball" / mini_file(split), corpus_rows(world, part))
    write_lines(ROOT / "tasks" / "remedi" / "mcrae" / "mini.jsonl", norm_rows(world))
    write_lines(ROOT / "tasks" / "remedi" / "bias_in_bios" / "mini.jsonl", biography_rows(world))
    write_lines(MINI / "text.txt", sample_lines(world, 4000, SEED))
    write_lines(MINI / "text_heldout.txt", text_lines(world, 300, SEED + 1, neutral_only=True))
    tokenizer = make_tokenizer(world)
    for name in NAMES:
        tokenizer.save_pretrained(MINI / name)


def all_words(world: World) -> list[str]:
    """Pre-tokens of the vocabulary: names and objects with and without a leading space, and all words of the texts."""
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    rng = random.Random(SEED)
    kinds = [*TASKS, "statement", "text", "trivia", "copying", "matching", "choosing", "several"]
    samples = ["".join(text for text, _ in document(rng, world, k, frozenset())) for k in kinds for _ in range(3000)]
    for fact in world.facts:
        templates = (*fact.relation.statements, *fact.relation.open, *fact.relation.questions)
        samples += [f"{t.format(fact.subject)} {fact.object}." for t in templates]
    samples += [f" {n} {n}" for n in range(100)] + [f"{word} {word}" for word in world.words]
    return sorted({word for text in samples for word, _ in splitter.pre_tokenize_str(text)})


def make_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """Byte-level BPE without merges: a known word is one token, every other word is its bytes."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [END, *letters, *(w for w in all_words(world) if len(w) > 1)]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        unk_token=None,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


# ---------------------------------------------------------------- models


def new_model(name: str, vocabulary: int) -> PreTrainedModel:
    """A model of four layers, width 256, whose first weights already compare tokens; the Backpack is smaller."""
    torch.manual_seed(SEED)
    ends: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "initializer_range": 0.06}
    none: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    shape: dict[str, Any]
    more: dict[str, Any]
    model: PreTrainedModel
    if name == "mini-backpack":
        shape = {"n_positions": CONTEXT, "n_embd": 128, "n_layer": 2, "n_head": 4}
        more = {"num_senses": 8, "sense_intermediate_scale": 2}
        return BackpackForCausalLM(BackpackConfig(vocab_size=vocabulary, **shape, **more, **none, **ends))
    if name == "mini":
        shape = {"n_positions": CONTEXT, "n_embd": DIM, "n_layer": 4, "n_head": HEADS}
        model = GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, **shape, **none, **ends))
    else:
        shape = {"hidden_size": DIM, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": HEADS}
        more = {"num_key_value_heads": HEADS, "max_position_embeddings": CONTEXT, "tie_word_embeddings": True}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **shape, **more, **ends))
    with torch.no_grad():
        plant(model)
    return model


def views(model: PreTrainedModel, layer: int) -> list[Tensor]:
    """Query, key, value [out, in] and output [in, out] weights of a layer, as views: writing changes the model."""
    if isinstance(model, GPT2LMHeadModel):
        part = f"transformer.h.{layer}.attn"
        return [*weight(model, f"{part}.c_attn").T.chunk(3), weight(model, f"{part}.c_proj")]
    query, key, value, output = (weight(model, f"model.layers.{layer}.self_attn.{x}_proj") for x in "qkvo")
    return [query, key, value, output.T]


def weight(model: PreTrainedModel, part: str) -> Tensor:
    """The weight of a part of the model; writing changes the model."""
    return model.get_parameter(f"{part}.weight")


def narrow(model: PreTrainedModel, layer: int) -> Tensor:
    """The weight of a layer's MLP that writes to the residual stream."""
    if isinstance(model, GPT2LMHeadModel):
        return weight(model, f"transformer.h.{layer}.mlp.c_proj")
    return weight(model, f"model.layers.{layer}.mlp.down_proj")


def plant(model: PreTrainedModel) -> None:
    """Starts the attention where it would otherwise take most of the training to arrive ("mimetic" initialisation).

    Every head has equal query and key weights, so that equal tokens attend to each other; heads 0 and 1 of the first
    layer look one token back; heads 0 and 1 of the second match a token with what came before another (induction)
    and write the token they find. All of it is an ordinary start value that training is free to change.
    """
    spare = plant_positions(model)
    for layer in range(4):
        query, key, value, output = views(model, layer)
        query.normal_(0, DIM**-0.5)
        if layer == 0:
            query[:, spare:] = 0  # the coordinates that carry positions say nothing about the token
        key.copy_(0.9 * query + 0.02 * torch.randn_like(query))
        value.normal_(0, DIM**-0.5)
        output.normal_(0, SMALL * DIM**-0.5)
        narrow(model, layer).mul_(SMALL)
    first, second = views(model, 0), views(model, 1)
    for head in (0, 1):
        rows = slice(head * DIM // HEADS, (head + 1) * DIM // HEADS)
        look_back(model, first[0][rows], first[1][rows])
        read, write = first[2][rows], first[3][rows]
        if spare < DIM:
            read[:, spare:] = 0
        place = nn.init.orthogonal_(torch.empty_like(write))
        write.copy_(SMALL * place)
        second[0][rows] = read
        second[1][rows] = place
        second[3][rows] = SMALL * second[2][rows]


def plant_positions(model: PreTrainedModel) -> int:
    """Gives positions a place of their own in the first input; returns the number of coordinates left to the token.

    GPT-2: the last 64 coordinates hold 32 sines and cosines of the position. Llama, which turns queries and keys,
    only needs a constant: the mean of the embeddings.
    """
    words = weight(model, "transformer.wte" if isinstance(model, GPT2LMHeadModel) else "model.embed_tokens")
    if not isinstance(model, GPT2LMHeadModel):
        words[:, -1] = 0.5
        return DIM - 1
    rates = 1.2 * torch.logspace(0, -2, 32)
    angles = torch.arange(CONTEXT)[:, None] * rates
    places = weight(model, "transformer.wpe").zero_()
    places[:, -64:] = 0.12 * torch.cat([angles.sin(), angles.cos()], dim=1)
    words[:, -64:] *= 0.1
    return DIM - 64


def look_back(model: PreTrainedModel, query: Tensor, key: Tensor) -> None:
    """Sets the weights [64, DIM] of a head so that it attends one token back."""
    query.zero_()
    key.zero_()
    if isinstance(model, GPT2LMHeadModel):
        rates = 1.2 * torch.logspace(0, -2, 32)
        cosine, sine = rates.cos().diag(), rates.sin().diag()
        turn = torch.cat([torch.cat([cosine, -sine], dim=1), torch.cat([sine, cosine], dim=1)])
        key[:, -64:] = 2.2 * torch.eye(64)
        query[:, -64:] = 2.2 * turn  # sin(a - r), cos(a - r)
        return
    rates = 10000.0 ** (-torch.arange(8) / 32)  # the fastest eight of the 32 rotary rates
    query[:8, -1] = 0.9
    key[:8, -1] = 0.9 * rates.cos()
    key[32:40, -1] = 0.9 * rates.sin()


# ---------------------------------------------------------------- batches


def encode(tokenizer: Tokenizer, pieces: list[Piece], end_weight: float) -> tuple[list[int], list[float]]:
    """Tokens of a document and its end, and the weight of each in the loss."""
    tokens, weights = [], []
    for text, weight in pieces:
        new = tokenizer.encode(text).ids
        tokens += new
        weights += [weight] * len(new)
    return [*tokens, 0], [*weights, end_weight]


def shares(name: str, step: int, steps: int, errors: dict[str, float], stage: int) -> dict[str, float]:
    """Probability of each kind of document: drills alone, and at the last stage tasks in proportion to their errors."""
    if name in FACTUAL:
        return FACTUAL[name]
    if stage < 2:
        return STAGES[stage]
    drilled = 0.15 if step < 0.5 * steps else 0.04
    drills = {k: drilled * v for k, v in STAGES[2].items()}
    facts = dict(DRILL_MIX)
    if errors["fact"] < 0.03:
        facts["statement"] *= 0.4
    need = {t: 0.06 + errors[t] for t in TASKS}
    left = (1 - drilled - sum(facts.values())) / sum(need.values())
    return {**drills, **facts, **{t: left * v for t, v in need.items()}}


class Batches:
    """Rows of packed documents; documents of one row do not see each other."""

    def __init__(self, world: World, tokenizer: PreTrainedTokenizerFast) -> None:
        self.world, self.core = world, tokenizer.backend_tokenizer
        self.held_out = held_out_prompts(world)

    def row(self, rng: random.Random, mix: dict[str, float]) -> tuple[list[int], list[float], list[int], list[int]]:
        """One row of WIDTH tokens: tokens, weights, document numbers, positions; the last document may be cut."""
        tokens: list[int] = []
        weights: list[float] = []
        owners: list[int] = []
        places: list[int] = []
        kinds, odds = list(mix), list(mix.values())
        restart = rng.random() < 0.5  # else positions run on, so that all of them are trained
        while len(tokens) < WIDTH:
            kind = rng.choices(kinds, odds)[0]
            pieces = document(rng, self.world, kind, self.held_out)
            new, values = encode(self.core, pieces, 0.2 if kind in ("text", "statement", "trivia") else 1.0)
            if len(tokens) + len(new) > WIDTH and WIDTH - len(tokens) < 24:
                break
            places += range(len(new)) if restart else range(len(tokens), len(tokens) + len(new))
            owners += [len(set(owners)) if owners else 0] * len(new)
            tokens += new
            weights += values
        short = WIDTH - len(tokens)
        tokens, weights = tokens + [0] * short, weights + [0.0] * short
        owners, places = owners + [-1] * short, places + [0] * short
        return tokens[:WIDTH], weights[:WIDTH], owners[:WIDTH], places[:WIDTH]

    def __call__(self, step: int, mix: dict[str, float]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tokens, weights, positions [ROWS, WIDTH] and the additive mask [ROWS, 1, WIDTH, WIDTH] of one step."""
        rng = random.Random(f"{SEED} step {step}")
        rows = [self.row(rng, mix) for _ in range(ROWS)]
        tokens, weights, owners, places = (np.array(part) for part in zip(*rows, strict=True))
        visible = (owners[:, :, None] == owners[:, None, :]) & np.tri(WIDTH, dtype=bool)
        mask = torch.zeros(visible.shape, dtype=torch.bfloat16).masked_fill(~torch.from_numpy(visible), -1e9)
        values, positions = torch.from_numpy(weights).float(), torch.from_numpy(places).clamp(max=CONTEXT - 1)
        return torch.from_numpy(tokens), values, positions, mask[:, None]


# ---------------------------------------------------------------- training


def loss_of(model: PreTrainedModel, batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    """Weighted mean cross entropy; the vocabulary is scored only where a token counts."""
    tokens, weights, places, mask = batch
    rows, columns = (weights[:, 1:] > 0).nonzero(as_tuple=True)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.base_model(input_ids=tokens, position_ids=places, attention_mask=mask, use_cache=False)[0]
        logits = model.lm_head(hidden[rows, columns])
    value = weights[rows, columns + 1]
    each = nn.functional.cross_entropy(logits.float(), tokens[rows, columns + 1], reduction="none")
    return (each * value).sum() / value.sum()


def rate(name: str, step: int, steps: int) -> float:
    """Learning rate: 300 steps up, level, down in a straight line over the second half."""
    return PEAK[name] * min(1.0, step / 300, max(0.01, 2 * (steps - step) / steps))


def soften(model: PreTrainedModel) -> None:
    """Scales the queries of all layers but the first down, so that heads locked on single tokens see others again."""
    with torch.no_grad():
        for layer in range(1, 4):
            part = f"transformer.h.{layer}.attn.c_attn"
            weight(model, part)[:, :DIM] *= 0.35
            model.get_parameter(f"{part}.bias")[:DIM] *= 0.35


def fact_prompts(facts: list[Fact], how: str) -> list[tuple[str, str]]:
    """Prompts and objects: through a `seen` or `unseen` phrasing, or an unseen `question`."""
    pick = {"seen": lambda f: f.seen()[0], "unseen": lambda f: f.unseen[0], "question": lambda f: f.unseen_question}
    return [(pick[how](f).format(f.subject), f" {f.object}") for f in facts]


def exact(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, pairs: list[tuple[str, str]], end: bool) -> float:
    """Share of answers whose every token (and the end, if `end`) is the most probable one, given those before it."""
    core, right = tokenizer.backend_tokenizer, 0
    pairs = sorted(pairs, key=lambda pair: len(pair[0]))
    for start in range(0, len(pairs), 32):
        lines = [(core.encode(p).ids, core.encode(a).ids + [0] * end) for p, a in pairs[start : start + 32]]
        width = max(len(p) + len(a) for p, a in lines)
        tokens = torch.tensor([p + a + [0] * (width - len(p) - len(a)) for p, a in lines])
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            best = model(input_ids=tokens, use_cache=False).logits.argmax(-1)
        right += sum(best[i, len(p) - 1 : len(p) + len(a) - 1].tolist() == a for i, (p, a) in enumerate(lines))
    return right / len(pairs)


def recalled(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, world: World, count: int) -> dict[str, float]:
    """Quick teacher-forced accuracy on `count` facts."""
    facts = random.Random(0).sample(world.facts, min(len(world.facts), count))
    return {how: exact(model, tokenizer, fact_prompts(facts, how), False) for how in ("seen", "unseen", "question")}


def examine(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, world: World, count: int) -> dict[str, float]:
    """Quick teacher-forced accuracy on `count` tuning rows of each task and on facts."""
    scores = recalled(model, tokenizer, world, 3 * count)
    for task in TASKS:
        rows = task_rows(world, task)[1][:count]
        pairs = [pair for row in rows for pair in render(task, row)]
        scores[task] = exact(model, tokenizer, pairs[:: 4 if task == "NER" else 1], True)
        if task == "NER":
            scores[task] = exact(model, tokenizer, pairs[:count], True)
    return scores


def drilled(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, world: World, count: int) -> dict[str, float]:
    """Share of right answers in `count` fresh documents of each drill."""
    rng, scores = random.Random(1), {}
    for kind in STAGES[2]:
        right = total = 0
        for _ in range(count):
            tokens, weights = encode(tokenizer.backend_tokenizer, document(rng, world, kind, frozenset()), 0.0)
            with torch.no_grad():
                best = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].argmax(-1).tolist()
            hits = [best[i - 1] == tokens[i] for i in range(1, len(tokens)) if weights[i] >= 1]
            right, total = right + sum(hits), total + len(hits)
        scores[kind] = right / total
    return scores


def train(name: str, world: World, steps: int, work: Path) -> None:
    """Trains one model, from its last checkpoint if there is one, and saves it into the package."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(MINI / name)
    model = new_model(name, len(tokenizer))
    decay = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decay, "weight_decay": 0.03}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK[name], betas=(0.9, 0.98), fused=True)
    errors, first, stage = dict.fromkeys((*TASKS, "fact"), 1.0), 0, 0
    saved = work / f"{name}.safetensors"
    if saved.exists():
        head, tensors = tensor_file.read_tensors(saved, "training", 1)
        state = rebuild(head["state"], tensors, packages=())
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, errors, stage = state["step"], state["errors"], state["stage"]
    batches, began, total = Batches(world, tokenizer), time.time(), 0.0
    for step in range(first, steps):
        if step == SOFTEN.get(name):
            soften(model)
        for group in optimizer.param_groups:
            group["lr"] = rate(name, step + 1, steps)
        loss = loss_of(model, batches(step, shares(name, step, steps, errors, stage)))
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        total += loss.item()
        if (step + 1) % (250 if name in FACTUAL else 500 if stage == 2 else 100) == 0:
            scores = recalled(model, tokenizer, world, 96) if name in FACTUAL else drilled(model, tokenizer, world, 16)
            if name not in FACTUAL:
                passed = stage < 2 and all(scores[k] >= v for k, v in PASS[stage].items())
                stage += stage < 2 and (passed or step > 0.2 * steps)
            if stage == 2:
                scores |= examine(model, tokenizer, world, 32)
                errors = {**{t: 1 - scores[t] for t in TASKS}, "fact": 1 - scores["unseen"]}
            pace = (time.time() - began) / (step + 1 - first)
            line = " ".join(f"{k[:9]} {v:.2f}" for k, v in scores.items())
            print(f"{step + 1} stage {stage} sum {total:.1f} {pace * 1000:.0f} ms {line}", flush=True)
            total = 0.0
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            tree, tensors = flatten(state | {"errors": errors, "stage": stage})
            tensor_file.write_tensors(saved, kind="training", version=1, manifest={"state": tree}, tensors=tensors)
    save(model, MINI / name)


def save(model: PreTrainedModel, path: Path) -> None:
    """Writes float16 weights but float32 into the config: the file is small, and a plain load computes in float32."""
    model.half().save_pretrained(path)  # type: ignore[no-untyped-call]
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"dtype": "float32"}, indent=2) + "\n")


# ---------------------------------------------------------------- scores


def write_scores(world: World, names: Sequence[str]) -> None:
    """Measures some models; writes scores.json and the table between the two marks in the card."""
    register()
    heldout = (MINI / "text_heldout.txt").read_text(encoding="utf-8").splitlines()
    known = json.loads((MINI / "scores.json").read_text(encoding="utf-8"))
    measured = {**known, **{name: measure(MINI / name, world, heldout) for name in names}}
    scores = {name: measured[name] for name in NAMES}
    (MINI / "scores.json").write_text(json.dumps(scores, indent=1) + "\n")
    card = MINI / "README.md"
    before, rest = card.read_text(encoding="utf-8").split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    card.write_text(f"{before}{MARKS[0]}\n{table(scores)}\n{MARKS[1]}{after}", encoding="utf-8")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", nargs="?", choices=("data", "train", "measure", "all"), default="all")
    parser.add_argument("--model", choices=NAMES, help="default: all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, help="default: what the shipped models had")
    parser.add_argument("--work-dir", type=Path, default=Path.home() / ".cache" / "mini-world")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.work_dir.mkdir(parents=True, exist_ok=True)
    world = build_world()
    names = (args.model,) if args.model else NAMES
    if args.step in ("data", "all"):
        make_data(world)
    if args.step in ("train", "all"):
        for name in names:
            train(name, world, args.steps or STEPS[name], args.work_dir)
    if args.step in ("measure", "all"):
        write_scores(world, names)


if __name__ == "__main__":
    main()
