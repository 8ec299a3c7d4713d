"""Every family of models and every kind of editor: exact, works, or refused in one line; and the page says so.

Each family is tried with one editor of each column of docs/reference/architectures.md, in turn, half of them from end
to end and the others as far as the refusal; ``scripts/architectures.py`` tries all of them, and writes the page.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import transformers

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import architectures
from architectures import EDITORS, PAGE, Outcome, Zoo, cell, committed, groups, outcome, reasons
from tiny_models import FAMILIES, known_families

from harness.editing.editor import Wrapper
from harness.editing.registry import editor_names, find
from harness.errors import ModelError
from harness.methods import locate_then_edit, value_forward
from harness.methods.locate_then_edit import LocateThenEdit
from harness.models.lm import LM
from harness.patches import patch

ASKED_FOR = {
    *("deepseek_v2", "deepseek_v3", "qwen3_next", "qwen3_5_text", "lfm2", "bamba", "falcon_h1", "jamba", "gemma2"),
    *("gemma3_text", "gemma3n_text", "olmo2", "glm4", "granite", "gpt_oss", "mixtral", "olmoe", "qwen2_moe"),
    *("qwen3_moe", "phi3", "stablelm", "falcon", "bloom", "gpt_neox", "gptj", "codegen", "mpt", "cohere", "cohere2"),
    *("nemotron", "starcoder2", "smollm3", "ministral", "mistral", "llama4_text", "exaone4", "ernie4_5", "apertus"),
    *("hunyuan_v1_dense", "seed_oss", "helium", "zamba", "zamba2", "mamba", "rwkv", "openai-gpt", "arcee", "gpt2"),
    *("llama", "opt", "opt (narrow embedding)", "bart", "xlnet"),
}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zoo]:
    transformers.logging.set_verbosity_error()
    yield Zoo(tmp_path_factory.mktemp("zoo"))
    transformers.logging.set_verbosity_warning()


def read_page() -> tuple[str, dict[str, dict[str, str]], dict[tuple[str, str], str]]:
    """The version of transformers, family -> column -> cell, and (family, editor) -> the line of the refusal."""
    text = PAGE.read_text(encoding="utf-8")
    (version,) = re.findall(r"Measured with transformers (\S+) on", text)
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:1] == "|"]
    table = {row[0].strip("`"): dict(zip(rows[0][1:], row[1:], strict=True)) for row in rows[2:]}
    why = {}
    for family, names, line in re.findall(r"^\* `([^`]+)`, ([^:]+): (.*)$", text, re.MULTILINE):
        why.update(dict.fromkeys(((family, name) for name in names.split(", ")), line))
    return version, table, why


def word(cell: str, editor: str) -> str:
    """What a cell says of one editor: the word of its column, or its own."""
    usual, *others = cell.split("; ")
    return dict(other.rsplit(" ", 1) for other in others).get(editor, usual)


def chosen(family: str) -> list[tuple[str, str, bool]]:
    """The columns, one editor of each, and whether it is tried from end to end."""
    turn = list(FAMILIES).index(family)
    return [
        (group, names[turn % len(names)], (turn // len(names) + column) % 2 == 0)
        for column, (group, names) in enumerate(groups().items())
    ]


@pytest.mark.parametrize("family", known_families())
def test_a_family_is_edited_exactly_or_works_or_is_refused_as_the_page_says(zoo: Zoo, family: str) -> None:
    version, table, why = read_page()
    try:
        lm = zoo.model(family)
    except ModelError as error:
        found = {(group, name): Outcome("refused", str(error)) for group, name, _ in chosen(family)}
    else:
        found = {(group, name): outcome(zoo, lm, name, whole=whole) for group, name, whole in chosen(family)}
    assert not [(name, one.reason) for (_, name), one in found.items() if one.verdict == "wrong"]
    assert all("\n" not in one.reason for one in found.values())
    if version != transformers.__version__:
        return  # another version may have built a family otherwise
    for (group, name), one in found.items():
        said = word(table[family][group], name)
        assert said == one.verdict or (one.verdict == "accepted" and said in ("exact", "works")), (group, name, one)
        assert (one.verdict == "refused") == ((family, name) in why)


def test_the_page_has_every_family_and_nothing_wrong() -> None:
    version, table, why = read_page()
    if version == transformers.__version__:
        assert list(table) == known_families()
    cells = [(row[group], name) for row in table.values() for group, names in groups().items() for name in names]
    assert {word(cell, name) for cell, name in cells} == {"exact", "works", "refused"}
    assert len(table) >= 100
    assert all(len(line) > 40 for line in why.values())


def test_what_the_page_says_is_read_back() -> None:
    """Of editors that are not tried again the page stays as it is."""
    text, (_, table, why) = PAGE.read_text(encoding="utf-8"), read_page()
    for family, found in committed(text).items():
        for group, names in groups().items():
            assert cell({name: found[name].verdict for name in names}) == table[family][group]
        for line, names in reasons({name: found[name] for row in groups().values() for name in row}).items():
            assert f"* `{family}`, {', '.join(names)}: {line}\n" in text
            assert {why[family, name] for name in names} == {line}


def test_the_families_that_people_use_are_there() -> None:
    assert set(FAMILIES) >= ASKED_FOR


def test_every_editor_is_tried() -> None:
    methods = {n for n in editor_names() if not issubclass(find(n), Wrapper) and not find(n).reference}
    assert methods >= set(EDITORS)
    assert {name.partition(" ")[0] for names in groups().values() for name in names} == methods


def test_every_editor_is_tried_on_several_families() -> None:
    whole = [name for family in FAMILIES for _, name, whole in chosen(family) if whole]
    assert min(whole.count(name) for names in groups().values() for name in names) >= 3


# ------------------------------------------------------------------------------------------- that it can fail


def wrong(zoo: Zoo, family: str, editor: str) -> str:
    one = outcome(zoo, zoo.model(family), editor)
    assert one.verdict == "wrong", one
    return one.reason


@pytest.mark.parametrize("family", ["gemma2", "granite", "falcon_h1"])
def test_without_the_probe_memit_would_be_wrong(zoo: Zoo, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locate_then_edit, "require_additive", lambda *_: None)
    assert "value off by" in wrong(zoo, family, "memit")


def test_a_value_written_elsewhere_is_noticed(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = LocateThenEdit.objective
    monkeypatch.setattr(LocateThenEdit, "objective", lambda self, layer: plain(self, layer + (self.layers == (0,))))
    assert wrong(zoo, "llama", "rome")


def test_what_an_editor_leaves_behind_is_noticed(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = architectures._works

    def careless(lm: LM, method: object) -> Outcome:
        lm.model.config.use_cache = False
        return plain(lm, method)  # type: ignore[arg-type]

    monkeypatch.setattr(architectures, "_works", careless)
    assert wrong(zoo, "llama", "none") == "it leaves config.use_cache behind"


def test_an_output_read_from_the_wrong_part_is_noticed(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (value_forward, patch):
        monkeypatch.setattr(module, "with_first", lambda output, _hidden: output)
    assert wrong(zoo, "openai-gpt", "grace")
