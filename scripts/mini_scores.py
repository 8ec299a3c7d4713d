"""Measures the mini models as a user would: the saved files, loaded in float32, real prompts, greedy decoding."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from mini_text import NOUNS, VERBS
from mini_world import PARTS, TASKS, Fact, Row, World, edit_rows, entities, render, task_rows
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

Score = dict[str, float | int]  # value (percent unless the name says otherwise) and n
NEW_TOKENS = {"NER": 10, "OpenDomainQA": 20, "reasoning": 5, "summarization": 25}  # one token for the others
GOALS = {
    "facts, a phrasing seen in training": 97,
    "facts, the two phrasings not seen": 90,
    "ClosedDomainQA, accuracy": 85,
    "dialogue, accuracy": 80,
    "NER, F1": 85,
    "NLI, accuracy": 90,
    "OpenDomainQA, exact match": 80,
    "reasoning, exact match": 60,
    "SentimentAnalysis, accuracy": 90,
    "summarization, mean ROUGE": 45,
}


class Reader:
    """A model with its tokenizer, asked for greedy continuations and log-probabilities."""

    def __init__(self, path: Path) -> None:
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path)
        self.model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        self.model.train(False)

    def complete(self, prompts: Sequence[str], new: int) -> list[str]:
        """Greedy continuations of at most `new` tokens, cut at the end. Prompts of one length share a batch."""
        groups: dict[int, list[int]] = defaultdict(list)
        tokens = [self.tokenizer(p).input_ids for p in prompts]
        for index, line in enumerate(tokens):
            groups[len(line)].append(index)
        texts = [""] * len(prompts)
        for length, members in groups.items():
            lines = torch.tensor([tokens[i] for i in members])
            with torch.no_grad():
                seen = torch.ones_like(lines)
                out = self.model.generate(lines, attention_mask=seen, max_new_tokens=new, do_sample=False)  # type: ignore[operator]
            for i, line in zip(members, out[:, length:].tolist(), strict=True):
                texts[i] = str(self.tokenizer.decode(line[: line.index(0)] if 0 in line else line))
        return texts

    def says(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """Whether greedy decoding of each prompt starts with its answer; one forward pass for 64 pairs."""
        lines = [(self.tokenizer(p).input_ids, self.tokenizer(a).input_ids) for p, a in pairs]
        right = []
        for start in range(0, len(lines), 64):
            batch = lines[start : start + 64]
            width = max(len(p) + len(a) for p, a in batch)
            tokens = torch.tensor([p + a + [0] * (width - len(p) - len(a)) for p, a in batch])
            with torch.no_grad():
                seen = torch.ones_like(tokens)  # what follows an answer cannot change it: nothing to hide
                best = self.model(tokens, attention_mask=seen).logits.argmax(-1).tolist()
            right += [b[len(p) - 1 : len(p) + len(a) - 1] == a for b, (p, a) in zip(best, batch, strict=True)]
        return right

    def next_token(self, prompt: str, words: Sequence[str]) -> list[float]:
        """Log-probability of each one-token continuation."""
        with torch.no_grad():
            values = self.model(torch.tensor([self.tokenizer(prompt).input_ids])).logits[0, -1].log_softmax(-1)
        return [values[self.tokenizer(word).input_ids[0]].item() for word in words]

    def perplexity(self, lines: Sequence[str]) -> tuple[float, int]:
        """Perplexity per token after the first of each line, and the number of tokens."""
        total, count = 0.0, 0
        for line in lines:
            tokens = torch.tensor([self.tokenizer(line).input_ids])
            with torch.no_grad():
                total += self.model(tokens, labels=tokens).loss.item() * (tokens.shape[1] - 1)
            count += tokens.shape[1] - 1
        return math.exp(total / count), count


def share(right: Sequence[bool]) -> Score:
    """Percent true."""
    return {"value": round(100 * sum(right) / len(right), 1), "n": len(right)}


def recall(reader: Reader, pairs: Sequence[tuple[str, str]]) -> Score:
    """Percent of prompts whose greedy continuation starts with the object."""
    return share(reader.says([(prompt, f" {target}") for prompt, target in pairs]))


def facts(reader: Reader, world: World) -> dict[str, Score]:
    """How many facts each kind of phrasing gets out of the model."""
    kinds: dict[str, Callable[[Fact], Sequence[str]]] = {
        "facts, a phrasing seen in training": lambda f: f.seen()[:2],
        "facts, the two phrasings not seen": lambda f: f.unseen,
        "facts, open prompts": lambda f: f.relation.open,
        "facts, questions seen": lambda f: f.questions(),
        "facts, the question not seen": lambda f: (f.unseen_question,),
    }
    scores = {
        name: recall(reader, [(s.format(f.subject), f.object) for f in world.facts for s in pick(f)])
        for name, pick in kinds.items()
    }
    rows = [row for split in edit_rows(world, "counterfact") for row in split]
    about = [(p, r["requested_rewrite"]["target_true"]["str"]) for r in rows for p in r["paraphrase_prompts"]]
    scores["CounterFact paraphrase prompts (after an unrelated sentence)"] = recall(reader, about)
    scores["trivia (locality questions of zsRE)"] = recall(reader, world.trivia)
    return scores


def f1(found: Sequence[list[str]], wanted: Sequence[list[str]]) -> float:
    """Micro F1 of names over all prompts, in percent; 100 if there are none at all."""
    hits = sum((Counter(a) & Counter(b)).total() for a, b in zip(found, wanted, strict=True))
    total = sum(map(len, found)) + sum(map(len, wanted))
    return 200 * hits / total if total else 100.0


def common(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for x in a:
        last = row[:]
        for j, y in enumerate(b):
            row[j + 1] = last[j] + 1 if x == y else max(row[j], last[j + 1])
    return row[-1]


def rouge(text: str, wanted: str) -> float:
    """Mean of the F measures ROUGE-1, ROUGE-2 and ROUGE-L of lower-cased words, in percent."""
    a, b = ([w.strip(".,").lower() for w in t.split()] for t in (text, wanted))
    values = []
    for size in (1, 2):
        left, right = (Counter(zip(*(x[i:] for i in range(size)), strict=False)) for x in (a, b))
        values.append(2 * (left & right).total() / max(1, left.total() + right.total()))
    return 100 * (sum(values) + 2 * common(a, b) / max(1, len(a) + len(b))) / 3


def task(reader: Reader, name: str, rows: Sequence[Row]) -> tuple[str, Score]:
    """The measure of one general task on its test rows."""
    pairs = [pair for row in rows for pair in render(name, row)]
    texts = [t.strip() for t in reader.complete([p for p, _ in pairs], NEW_TOKENS.get(name, 1))]
    answers = [a.strip() for _, a in pairs]
    if name == "NER":
        wanted = [entities(row, kind) for row in rows for kind, _ in PARTS]
        found = [[x for x in t.split(", ") if x and x != "none"] for t in texts]
        return "NER, F1", {"value": round(f1(found, wanted), 1), "n": len(rows)}
    if name == "summarization":
        values = [rouge(t, a) for t, a in zip(texts, answers, strict=True)]
        return f"{name}, mean ROUGE", {"value": round(sum(values) / len(values), 1), "n": len(rows)}
    measure = "exact match" if name in NEW_TOKENS else "accuracy"
    return f"{name}, {measure}", share([t == a for t, a in zip(texts, answers, strict=True)])


def grammar(reader: Reader, world: World) -> dict[str, Score]:
    """Agreement of verb and noun, and the pronoun that the text prefers after an occupation."""
    right = []
    for one, many in NOUNS:
        for base, third in VERBS:
            for noun, good, bad in ((one, third, base), (many, base, third)):
                a, b = reader.next_token(f"The {noun}", (f" {good}", f" {bad}"))
                right.append(a > b)
    jobs = world.objects["occupation"]
    said = [reader.next_token(f"The {job} said that", (" he", " she")) for job in jobs]
    likes = [(he > she) == (i < len(jobs) // 2) for i, (he, she) in enumerate(said)]
    return {"verb agrees with its noun": share(right), "pronoun is the usual one of the occupation": share(likes)}


def measure(path: Path, world: World, heldout: Sequence[str]) -> dict[str, Score]:
    """All scores of the model in a folder."""
    reader = Reader(path)
    scores = facts(reader, world)
    scores |= dict(task(reader, name, task_rows(world, name)[0]) for name in TASKS)
    scores |= grammar(reader, world)
    value, count = reader.perplexity(heldout)
    return scores | {"perplexity of the held-out text (tokens)": {"value": round(value, 2), "n": count}}


def table(scores: dict[str, dict[str, Score]]) -> str:
    """Markdown: a row for each measure, a column for each model, and the goal where one was set."""
    names = list(scores)
    lines = [f"| measure | n | goal | {' | '.join(names)} |", f"|---|--:|--:|{'--:|' * len(names)}"]
    for key, first in scores[names[0]].items():
        values = " | ".join(str(scores[name][key]["value"]) for name in names)
        lines.append(f"| {key} | {first['n']} | {GOALS.get(key, '')} | {values} |")
    return "\n".join(lines)
