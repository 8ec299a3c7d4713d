"""The mini world: seeded, disjoint, in the schemas of the real sets, and spelled with one token a word."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import mini_canonical as canonical  # noqa: E402
import mini_cases as cases  # noqa: E402
import mini_cases_more as more  # noqa: E402
import mini_remedi as remedi  # noqa: E402
import mini_world as mini  # noqa: E402  (the scripts are no package)

MODELS = ("mini", "mini-llama", "mini-backpack")


@pytest.fixture(scope="module")
def world() -> mini.World:
    return mini.build_world()


def read(path: str) -> list[dict]:
    """The rows of a shipped file."""
    return [json.loads(line) for line in (ROOT / path).read_text(encoding="utf-8").splitlines()]


def both(world: mini.World, name: str) -> list[dict]:
    """Test and tuning rows of an edit set."""
    return [row for split in mini.edit_rows(world, name) for row in split]


def tokenizer(name: str):
    """The shipped tokenizer."""
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(ROOT / "harness" / "mini" / name)


def test_seeded_twice_is_the_same(world: mini.World) -> None:
    assert mini.build_world() == world
    assert mini.build_world(1) != world
    documents = [
        [mini.document(random.Random(3), world, kind, frozenset()) for kind in (*mini.TASKS, *mini.DRILLS)]
        for _ in range(2)
    ]
    assert documents[0] == documents[1]


@pytest.mark.parametrize("task", mini.TASKS)
def test_shipped_task_rows_are_the_generated_ones(world: mini.World, task: str) -> None:
    rows = mini.task_rows(world, task)
    assert read(f"tasks/general/{task}/mini.jsonl") == rows[0]
    assert read(f"tasks/general/{task}/mini_train.jsonl") == rows[1]


@pytest.mark.parametrize("name", ["counterfact", "zsre"])
def test_shipped_edit_rows_are_the_generated_ones(world: mini.World, name: str) -> None:
    rows = mini.edit_rows(world, name)
    assert read(f"tasks/edits/{name}/mini.jsonl") == rows[0]
    assert read(f"tasks/edits/{name}/mini_train.jsonl") == rows[1]


@pytest.mark.parametrize("name", canonical.MAKERS)
def test_shipped_canonical_rows_are_the_generated_ones(world: mini.World, name: str) -> None:
    for split, rows in canonical.canonical_rows(world, name).items():
        file = "mini.jsonl" if split == "test" else f"mini_{split}.jsonl"
        assert read(f"tasks/canonical/{name}/{file}") == rows


def test_shipped_norms_and_biographies_are_the_generated_ones(world: mini.World) -> None:
    assert read("tasks/remedi/mcrae/mini.jsonl") == remedi.norm_rows(world)
    assert read("tasks/remedi/bias_in_bios/mini.jsonl") == remedi.biography_rows(world)


def test_the_shipped_general_text_is_the_generated_one(world: mini.World) -> None:
    for part, file in (("general", "mini.jsonl"), ("regularisation", "mini_regularisation.jsonl")):
        assert read(f"tasks/canonical/ball/{file}") == canonical.corpus_rows(world, part)


@pytest.mark.parametrize("task", mini.TASKS)
def test_task_splits_are_disjoint(world: mini.World, task: str) -> None:
    test, train = ({mini.render(task, row)[0][0] for row in rows} for rows in mini.task_rows(world, task))
    assert len(test) == len(train) == 150 and not test & train


def test_training_never_draws_a_held_out_item(world: mini.World) -> None:
    held_out = mini.held_out_prompts(world)
    rng = random.Random(5)
    drawn = {mini.document(rng, world, task, held_out)[0][0] for task in mini.TASKS for _ in range(300)}
    assert not drawn & held_out


@pytest.mark.parametrize("task", mini.TASKS)
def test_answers_start_with_a_space_and_prompts_do_not_end_in_one(world: mini.World, task: str) -> None:
    for row in mini.task_rows(world, task)[0]:
        for prompt, answer in mini.render(task, row):
            assert answer[0] == " " and answer[1] != " " and not prompt[-1].isspace()


@pytest.mark.parametrize(
    ("task", "keys"),
    [
        ("ClosedDomainQA", {"question": str, "passage": str, "answer": bool}),
        ("dialogue", {"article": str, "options": list, "answers": str, "id": str}),
        ("NER", {"tokens": list, "tags": list}),
        ("NLI", {"sentence1": str, "sentence2": str, "label": str}),
        ("OpenDomainQA", {"question": str, "answer": list, "output": list}),
        ("reasoning", {"question": str, "answer": str}),
        ("SentimentAnalysis", {"sentence": str, "label": int}),
        ("summarization", {"id": str, "dialogue": str, "summary": str}),
    ],
)
def test_schema(world: mini.World, task: str, keys: dict[str, type]) -> None:
    for row in mini.task_rows(world, task)[0]:
        assert {key: type(value) for key, value in row.items()} == keys


def test_labels_are_balanced(world: mini.World) -> None:
    """The most frequent answer of a yes-or-no task stays below 60 %, of the letters below 40 %."""
    for task, limit in (("ClosedDomainQA", 0.6), ("NLI", 0.6), ("SentimentAnalysis", 0.6), ("dialogue", 0.4)):
        answers = [mini.render(task, row)[0][1] for row in mini.task_rows(world, task)[0]]
        assert max(answers.count(a) for a in answers) / len(answers) < limit


def test_only_the_right_reply_was_mentioned(world: mini.World) -> None:
    for row in mini.task_rows(world, "dialogue")[0]:
        talk = set(row["article"].split())
        known = {o for pool in world.objects.values() for o in pool}
        objects = [set(option.split()) & known for option in row["options"]]
        assert ["ABCD"[i] for i, names in enumerate(objects) if names & talk] == [row["answers"]]


def test_reasoning_adds_up(world: mini.World) -> None:
    for row in mini.task_rows(world, "reasoning")[0]:
        for line in row["answer"].splitlines()[:-1]:
            left, right = line.split(", so ")[1].rstrip(".").split(" = ")
            a, sign, b = left.split()
            assert int(a) + (1 if sign == "+" else -1) * int(b) == int(right)
        assert row["answer"].endswith(f"#### {right}")


def test_tags_are_iob2(world: mini.World) -> None:
    for row in mini.task_rows(world, "NER")[0]:
        for before, tag in zip(["O", *row["tags"]], row["tags"], strict=False):
            assert not tag.startswith("I-") or before[1:] == tag[1:]


def test_edit_splits_have_no_subject_in_common(world: mini.World) -> None:
    for name, counts in (("counterfact", (550, 200)), ("zsre", (400, 150))):
        test, train = mini.edit_rows(world, name)
        assert len(test) >= counts[0] and len(train) >= counts[1]
        names = [[row.get("subject") or row["requested_rewrite"]["subject"] for row in rows] for rows in (test, train)]
        subjects = [set(group) for group in names]
        assert not subjects[0] & subjects[1]


def test_counterfact_probes_are_what_they_claim(world: mini.World) -> None:
    truth = {(f.relation.id, f.subject): f for f in world.facts}
    for row in both(world, "counterfact"):
        ask = row["requested_rewrite"]
        fact = truth[ask["relation_id"], ask["subject"]]
        true, new = ask["target_true"]["str"], ask["target_new"]["str"]
        assert ask["prompt"].count("{}") == 1 and fact.object == true != new
        assert ask["prompt"] not in fact.unseen
        for prompt, statement in zip(row["paraphrase_prompts"], fact.unseen, strict=True):
            assert prompt.endswith(statement.format(ask["subject"]))
        assert all(ask["subject"] in p for p in row["paraphrase_prompts"] + row["generation_prompts"])
        assert len(set(row["generation_prompts"])) >= 3 and len(row["generation_prompts"]) == 10
        for key, object in (("neighborhood_prompts", true), ("attribute_prompts", new)):
            assert len(set(row[key])) == 10 and not any(ask["subject"] in p for p in row[key])
            owners = [f.subject for f in world.facts if f.relation is fact.relation and f.object == object]
            assert all(any(owner in prompt for owner in owners) for prompt in row[key])


def test_zsre_rows_name_their_subject(world: mini.World) -> None:
    for row in both(world, "zsre"):
        assert row["subject"] in row["src"] and row["subject"] in row["rephrase"] and row["src"] != row["rephrase"]
        assert row["answers"] == [row["pred"]] and row["alt"] != row["pred"]
        assert row["cond"] == f"{row['pred']} >> {row['alt']} || {row['src']}"
        assert (row["loc"], row["loc_ans"]) in world.trivia


def test_snippets_cover_every_target_of_counterfact(world: mini.World) -> None:
    texts = json.loads((ROOT / "tasks/edits/counterfact/mini_snippets.json").read_text(encoding="utf-8"))
    assert texts == mini.snippets(world)
    for row in both(world, "counterfact"):
        ask = row["requested_rewrite"]
        for target in (ask["target_new"], ask["target_true"]):
            found = texts[ask["relation_id"]][target["id"]]
            assert len(found) >= 5 and all(target["str"] in text for text in found)


@pytest.mark.parametrize("name", MODELS)
def test_a_word_of_the_world_is_one_token(world: mini.World, name: str) -> None:
    reader = tokenizer(name)
    assert len(reader) <= 3500 and reader.model_max_length == 256
    for word in (*world.words, *(o for pool in ("instrument", "occupation", "product") for o in world.objects[pool])):
        assert len(reader(" " + word).input_ids) == len(reader(word).input_ids) == 1
    assert all(len(reader(f" {number}").input_ids) == 1 for number in range(100))


@pytest.mark.parametrize("name", MODELS)
def test_any_text_comes_back(name: str) -> None:
    reader = tokenizer(name)
    assert reader.bos_token_id == reader.eos_token_id == reader.pad_token_id == 0
    for text in ("Crème brûlée, 1984!\r\nTL;DR: 東京", "  two  spaces ", "Zzyzx plays the theremin."):
        assert reader.decode(reader(text).input_ids) == text


@pytest.mark.parametrize("name", MODELS)
def test_prompts_fit(world: mini.World, name: str) -> None:
    reader = tokenizer(name)
    for task in mini.TASKS:
        for row in mini.task_rows(world, task)[0]:
            assert all(len(reader(p).input_ids) < 200 for p, _ in mini.render(task, row))


@pytest.mark.parametrize("name", MODELS)
def test_the_answer_is_a_token_boundary(world: mini.World, name: str) -> None:
    """Prompt and answer apart have the tokens of both together, so that scoring and generation agree."""
    reader = tokenizer(name)
    for task in mini.TASKS:
        for row in mini.task_rows(world, task)[0][:40]:
            for prompt, answer in mini.render(task, row):
                assert reader(prompt).input_ids + reader(answer).input_ids == reader(prompt + answer).input_ids


def test_text_files() -> None:
    files = [ROOT / "harness" / "mini" / name for name in ("text.txt", "text_heldout.txt")]
    lines = [file.read_text(encoding="utf-8").splitlines() for file in files]
    assert [len(x) for x in lines] == [4000, 300] and not set(lines[0]) & set(lines[1])


@pytest.mark.parametrize("name", MODELS)
def test_the_model_knows_its_world(world: mini.World, name: str) -> None:
    """A plain load, in float32, says the object of nearly every one of 60 facts in a phrasing it never saw."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model, reader = transformers.AutoModelForCausalLM.from_pretrained(ROOT / "harness/mini" / name), tokenizer(name)
    assert model.dtype == torch.float32
    facts, right = random.Random(2).sample(world.facts, 60), 0
    for fact in facts:
        tokens = reader(fact.unseen[0].format(fact.subject), return_tensors="pt").input_ids
        with torch.no_grad():
            best = model(tokens).logits[0, -1].argmax().item()
        right += best == reader(f" {fact.object}").input_ids[0]
    assert right >= 0.9 * len(facts)


def test_scores_in_the_card_are_the_measured_ones() -> None:
    scores = json.loads((ROOT / "harness/mini/scores.json").read_text(encoding="utf-8"))
    card = (ROOT / "harness/mini/README.md").read_text(encoding="utf-8")
    for key, first in scores[MODELS[0]].items():
        line = next(line for line in card.splitlines() if line.startswith(f"| {key} |"))
        values = [str(scores[name][key]["value"]) for name in MODELS]
        assert [x.strip() for x in line.strip("|").split("|")][1] == str(first["n"])
        assert line.endswith(f"| {' | '.join(values)} |")


def test_shipped_cases_are_the_generated_ones(world: mini.World) -> None:
    test, train = cases.mquake_rows(world)
    assert read("tasks/edits/mquake/mini.jsonl") == test
    assert read("tasks/edits/mquake/mini_train.jsonl") == train


@pytest.mark.parametrize(
    "name",
    [
        *("akew", "akew_text", "mzsre", "bmike53", "mlake", "mlake_matrix", "mlake_hops", "peak", "conflictedit"),
        "roundedit",
    ],
)
def test_shipped_rows_of_text_languages_lists_and_conflicts_are_the_generated_ones(
    world: mini.World, name: str
) -> None:
    for split, rows in more.more_rows(world)[name].items():
        file = "mini.jsonl" if split == "test" else f"mini_{split}.jsonl"
        assert rows
        assert read(f"tasks/edits/{name}/{file}") == rows


def test_what_follows_in_a_case_is_true_of_its_edits(world: mini.World) -> None:
    """The answer of two hops is the second fact of the new head, or what that fact was edited to."""
    facts = {(fact.relation.id, fact.subject): fact.object for fact in world.facts}
    for row in cases.mquake_rows(world)[0]:
        first, *second = row["requested_rewrite"]
        old, new = first["target_true"]["str"], first["target_new"]["str"]
        assert facts["head", first["subject"]] == old != new
        relations = [name for name in cases.SECOND if facts[name, old] == row["answer"]]
        assert (
            any(facts[name, new] == row["new_answer"] for name in relations)
            or second[0]["target_new"]["str"] == row["new_answer"]
        )
        assert [hop["answer"] for hop in row["new_single_hops"]] == [new, row["new_answer"]]


@pytest.mark.parametrize("name", cases.SETS)
def test_shipped_rows_of_one_edit_are_the_generated_ones(world: mini.World, name: str) -> None:
    test, train = cases.case_rows(world, name)
    assert read(f"tasks/edits/{name}/mini.jsonl") == test
    assert read(f"tasks/edits/{name}/mini_train.jsonl") == train


def subjects_of(rows: list[dict]) -> set[str]:
    return {row["requested_rewrite"]["subject"] if "requested_rewrite" in row else row["subject"] for row in rows}


@pytest.mark.parametrize("name", cases.SETS)
def test_no_subject_is_in_both_splits_of_a_set(world: mini.World, name: str) -> None:
    test, train = map(subjects_of, cases.case_rows(world, name))
    assert test and train and not test & train


def answer(world: mini.World, statement: str) -> set[str]:
    """What the world says behind a statement or to a question, in any of its phrasings."""
    return {
        fact.object
        for fact in world.facts
        if fact.subject in statement
        for said in (*fact.relation.statements, *fact.relation.questions)
        if said.format(fact.subject) == statement
    }


def after_the_hop(world: mini.World, question: str, company: str, head: str) -> str:
    """The answer to a question about a company's head, read from the world's facts about a head."""
    (relation,) = [name for name, asked in cases.HOPS.items() if question in {one.format(company) for one in asked}]
    return next(fact.object for fact in world.about(head) if fact.relation.id == relation)


def test_a_hop_follows_from_the_new_head_or_the_new_seat(world: mini.World) -> None:
    heads = {fact.object: fact.subject for fact in world.facts if fact.relation.id == "head"}
    rows = [
        (row["requested_rewrite"]["subject"], row["requested_rewrite"]["target_new"]["str"], row["portability"])
        for row in cases.case_rows(world, "portability")[0]
    ] + [(row["subject"], row["alt"], row["portability"]) for row in cases.case_rows(world, "portability_zsre")[0]]
    seats = 0
    for company, new, hop in rows:
        asked = hop["New Question"]
        if "is the company that" in asked or "based?" in asked:
            (head,) = [name for name in heads if f"that {name} leads" in asked]
            assert (heads[head], hop["New Answer"]) == (company, new)
            seats += 1
        else:
            assert hop["New Answer"] == after_the_hop(world, asked, company, new)
    assert 0 < seats < len(rows)


def test_what_a_new_head_leads_has_one_answer(world: mini.World) -> None:
    heads = {fact.object for fact in world.facts if fact.relation.id == "head"}
    for row in cases.case_rows(world, "portability_inverse")[0]:
        assert row["inverse question"] == f"Which company does {row['alt']} lead?"
        assert row["alt"] not in heads and row["answers"] == [row["pred"]] != [row["alt"]]
    for row in cases.case_rows(world, "knowedit")[0]:
        for one in row["portability"].get("Logical_Generalization", []):
            assert row["target_new"] in one["prompt"] and row["target_new"] not in heads
            assert one["ground_truth"] == [[row["subject"]]]


def test_what_stays_is_true_in_the_world(world: mini.World) -> None:
    trivia = dict(world.trivia)
    for row in cases.case_rows(world, "qaedit")[0]:
        assert len({one["loc"] for one in row["locality"]}) == 5
        assert all(trivia[one["loc"]] == one["loc_ans"] for one in row["locality"])
        assert row["target"] not in answer(world, row["prompt"]) == answer(world, row["rephrase"])
    for row in cases.case_rows(world, "wikibigedit")[0]:
        assert row["locality_ground_truth"] in answer(world, row["locality_prompt"])
        assert row["locality_prompt"] != row["prompt"]
    for row in cases.case_rows(world, "knowedit")[0]:
        assert answer(world, row["prompt"]) == {row["ground_truth"]} != {row["target_new"]}
        for one in row["locality"].get("Relation_Specificity", []):
            assert [list(answer(world, one["prompt"]))] == one["ground_truth"]
        for one in row["locality"].get("Forgetfulness", []):
            assert row["target_new"] in one["prompt"] and one["ground_truth"] == [[row["ground_truth"]]]


def test_what_follows_under_another_name_and_by_another_fact(world: mini.World) -> None:
    lasts = [name.split()[-1] for names in world.kinds.values() for name in names]
    reasoned = 0
    for row in cases.case_rows(world, "knowedit")[0]:
        for one in row["portability"].get("Subject_Aliasing", []):
            alias = row["subject"].split()[-1]
            assert lasts.count(alias) == 1 and one["prompt"] == row["prompt"].replace(row["subject"], alias)
            assert one["ground_truth"] == [[row["target_new"]]]
        for one in row["portability"].get("Reasoning", []):
            right = after_the_hop(world, one["prompt"], row["subject"], row["target_new"])
            assert one["ground_truth"] == [[right]]
            reasoned += 1
    assert reasoned


def test_the_letter_is_that_of_the_new_object(world: mini.World) -> None:
    hops = 0
    for row in cases.case_rows(world, "halluedit")[0]:
        assert row["output"] in answer(world, row["question"])
        options = dict(one.split(". ") for one in row["multiple_choice_with_letters"].split("  "))
        assert options[row["multiple_choice_labels"]] == row["object"] != row["output"]
        assert sorted(options) == ["A", "B", "C", "D"] and len(set(options.values())) == 4
        assert row["output"] in options.values()
        assert row["yes_question"].endswith(f" {row['object']}?") and row["no_question"].endswith(f" {row['output']}?")
        if row["question_2hop"]:
            right = after_the_hop(world, row["question_2hop"], row["subject"], row["object"])
            assert row["answer_2hop"] == right
            hops += 1
    assert hops
