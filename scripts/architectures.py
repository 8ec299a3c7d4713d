"""What every kind of editor does on every family of models that transformers has: measured on tiny random models.

    python scripts/architectures.py                 write docs/reference/architectures.md
    python scripts/architectures.py llama mixtral   show what is measured on some families
    python scripts/architectures.py --only mine     measure one more editor, and keep what the page says of the others
    python scripts/architectures.py --write mixtral measure some families again, and keep the rest of the page

A cell is *exact*, *works*, or *refused*. Exact: at the subject's last token the edited model gives the optimised value
to 1e-5, and with this value there and nowhere else it has the loss that the optimisation reports. Works: the change
takes effect, and the exam's numbers and texts are those of plain passes. Refused: one line says why before anything is
edited. Whatever else comes out is *wrong*, and the tests fail.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from lm_eval.api.instance import Instance
from tiny_models import known_families, save_autoencoder, save_model, write_text
from torch import Tensor

from harness.editing.edit import Edit, Example, Probe
from harness.editing.editor import Editor, Learned, Wrapper
from harness.editing.promises import keeps_promise
from harness.editing.registry import configure, editor_names, find
from harness.errors import HarnessError, ModelError
from harness.exam.adapter import EditedLM
from harness.methods.keys import prompt_rows
from harness.methods.locate_then_edit import LocateThenEdit
from harness.methods.value import optimise
from harness.models.activations import read_activations
from harness.models.guard import Guard
from harness.models.lm import LM, load
from harness.patches.patch import Patch, Step, patched
from harness.studies.contract import checks

__all__ = ["EDITORS", "PAGE", "Outcome", "Zoo", "cell", "committed", "groups", "measured", "outcome", "page", "reasons"]

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "architectures.md"
EDITS = (
    Edit("1", "{} was born in", "Ada Velmont", "Rome", "Oslo"),
    Edit("2", "The mother tongue of {} is", "Hugo", "French", "Dutch"),
)
TRAIN = tuple(
    Example(Edit(str(i), say, who, new, old), (Probe(str(i), "neighborhood", say.format("Nobody"), new, old),))
    for i, (say, who, new, old) in enumerate(
        [("{} was born in", "Rosa", "Paris", "Oslo"), ("{} lives in", "Jonas", "Vienna", "Rome")] * 2
    )
)

_VALUE = {"v_steps": 3, "contexts": ["{}"], "cov_tokens": 3000}
_SPREAD = {**_VALUE, "lam": 1e-6}
_TUNED = {"steps": 3, "lr": 1e-2}
EDITORS: Mapping[str, Mapping[str, Any]] = {
    "rome": _VALUE,
    "r_rome": _VALUE,
    "memit": _SPREAD,
    "eamet": _SPREAD,
    "core": _SPREAD,
    "emmet": {**_VALUE, "lam": 1e-6, "emmet_lambda": 0.0},
    "alphaedit": {**_VALUE, "nullspace_threshold": 1e9, "l2": 1e-6},
    "betaedit": {**_VALUE, "nullspace_threshold": 1e9, "lambda1": 0.0, "lambda2": 1e-6},
    "lyaplock": _SPREAD,
    "evoedit": {**_VALUE, "nullspace_threshold": 1e9, "l2": 1e-6},
    "nse": {**_SPREAD, "neurons": 1.0, "repeats": 1},
    "blue": {**_VALUE, "nullspace_threshold": 1e9, "l2": 1e-6},
    "pmet": _SPREAD,
    "ft": {**_TUNED, "loss": "target_new"},
    "ft_l": {**_TUNED, "loss": "target_new", "norm_constraint": 0.1},
    "ft_m": _TUNED,
    "ft_kl": {**_TUNED, "kl": 0.1, "kl_tokens": 8},
    "dpo": {**_TUNED, "nll": 0.9},
    "locft": _TUNED,
    "crispedit": {**_TUNED, "energy": 0.5, "cov_tokens": 500},
    "lora": _TUNED,
    "qlora": _TUNED,
    "mend": {"rank": 4, "steps": 2, "accumulate": 1, "validate_every": 1, "lr": 0.0, "alpha": 1e-4, "alpha_lr": 0.0},
    "malmen": {"rank": 4, "steps": 2, "together": 3, "validate_every": 2, "lr": 3e-3, "meta_lr": 0.0},
    "rledit": {"rank": 4, "steps": 2, "together": 3, "validate_every": 2, "lr": 3e-3, "meta_lr": 0.0},
    "ultraedit": {"lr": 3e-3},
    "stableedit": {"lr": 3e-3},
    "kn": {"steps": 4, "contexts": ["{}"]},
    "full": _TUNED,
    "grace": {"n_iter": 6, "edit_lr": 1.0},
    "melo": {"layer": None, "layers": None, "n_iter": 12, "edit_lr": 1e-2, "eps": 1e-3, "scale": 20.0},
    "defer": {"n_iter": 12, "edit_lr": 2e-2},
    "wise": {"n_iter": 8, "edit_lr": 0.3, "alpha": 0.5, "beta": 2.0, "gamma": 1.0, "texts": 2, "contexts": ["{}"]},
    "memoir": {"n_iter": 8, "texts": 2, "contexts": ["{}"]},
    "unke": {"v_steps": 6, "steps": 30, "lr": 1e-3, "texts": 2},
    "anyedit": {"v_steps": 6, "window": 2, "lam": 1e-6, "cov_tokens": 3000},
    "remedi": {"epochs": 1, "layer": 0},
    "caa": {"strength": 4.0},
    "reft": {"steps": 40, "lr": 1e-2, "positions": "all"},
    "steer": {"steps": 2, "factors": (1.0, 2.0)},
    "sae": {},
    "senses": {"k": 2, "epochs": 8, "lr": 0.5, "kl": 1e-3, "accumulate": 1, "chunks": 4, "chunk_tokens": 16},
    "ike": {"k": 1, "room": 8},
    "rag": {"k": 1, "room": 8},
    "serac": {"steps": 2, "room": 8},
    "prompt": {"room": 8},
    "scr": {"room": 8, "tokens": 4, "ask": "{facts}\n{context}\n"},
    "mello": {"room": 8, "tokens": 4, "shown": 0, "hops": 1},
    "companion": {"k": 2, "epochs": 2, "lr": 0.5, "kl": 0.0},
    "none": {},
}
"""Settings with which each editor is quick; those of locate-then-edit keep nothing back of the value they write."""

_SPREADING = ("memit", "emmet", "alphaedit", "betaedit", "lyaplock", "blue", "nse", "evoedit", "eamet", "core")
_GROUPS: Mapping[str, tuple[str, ...]] = {
    "ROME": ("rome", "r_rome"),
    "MEMIT": _SPREADING,
    "MEMIT, `site=mlp`": tuple(f"{name} site=mlp" for name in _SPREADING),
    "PMET": ("pmet",),
    "one layer tuned": (
        "ft",
        "ft_l",
        "ft_m",
        "ft_kl",
        "dpo",
        "locft",
        "crispedit",
        "lora",
        "qlora",
        "malmen",
        "rledit",
        "mend",
        "stableedit",
        "ultraedit",
        "wise",
        "memoir",
        "unke",
        "anyedit",
    ),
    "neurons": ("kn",),
    "any weights": ("full",),
    "a module's output": ("grace", "defer", "melo", "remedi", "caa", "reft", "steer", "sae"),
    "senses": ("senses",),
    "prompt, logits, none": ("ike", "rag", "serac", "prompt", "scr", "mello", "companion", "none"),
}
"""What stands in one column of the page; of MEMIT's family each member with either site."""


@functools.cache
def groups() -> dict[str, tuple[str, ...]]:
    """The columns of the page; an editor that is in none of them has one with others of its kind."""
    listed = {name.partition(" ")[0] for names in _GROUPS.values() for name in names}
    methods = (name for name in editor_names() if not issubclass(find(name), Wrapper) and not find(name).reference)
    others = tuple(name for name in methods if name not in listed)
    return {**_GROUPS, **({"others": others} if others else {})}


_ALL_EXPERTS = ("ft", "ft_l", "ft_m", "ft_kl", "dpo", "locft")
"""Editors that write stacked experts, beside those that locate; they are tried there where there are some."""

_WRITTEN = 3  # tokens
_LIKELIER = 2e-4  # nats, of a few quick steps
_ROUNDING = 1e-3  # nats between two orders of the same sums


@dataclass(frozen=True)
class Outcome:
    """What an editor does on a model.

    Attributes:
        verdict: exact, works, refused, or wrong.
        reason: the line in which it is refused, or what is wrong.
        error: how far the module's output is from the optimised value, relative; None where none is optimised.
        gap: how far the loss of the edited model is from the one that the optimisation reports, in nats.
    """

    verdict: str
    reason: str = ""
    error: float | None = None
    gap: float | None = None


@dataclass(frozen=True)
class Zoo:
    """A folder with one tiny model of each family, made when it is asked for.

    Attributes:
        folder: where they are kept.
    """

    folder: Path

    @functools.cached_property
    def text(self) -> str:
        """Plain text for second moments."""
        return write_text(self.folder / "text.txt")

    @functools.cached_property
    def companion(self) -> str:
        """A tiny Backpack of another seed."""
        return str(save_model("backpack", self.folder / "companion", seed=1))

    def autoencoder(self, width: int) -> str:
        """A random sparse autoencoder of states of so many numbers."""
        folder = self.folder / f"autoencoder-{width}"
        if not folder.exists():
            save_autoencoder(folder, width=width, features=4 * width)
        return str(folder)

    def model(self, family: str) -> LM:
        """The model of a family, read as every checkpoint is.

        Raises:
            ModelError: it is no causal language model.
        """
        folder = self.folder / family
        if not folder.exists():
            save_model(family, folder)
        try:
            lm = load(str(folder), device="cpu", text=self.text)
        except ModelError as error:
            raise ModelError(str(error).replace(str(folder), family)) from None
        return replace(lm, name=family, arch=replace(lm.arch, owner=family))


def outcome(zoo: Zoo, lm: LM, editor: str, *, whole: bool = True) -> Outcome:
    """What one editor does on one model.

    Args:
        zoo: where its plain text and a companion are.
        lm: the model.
        editor: its name, or with ``site=mlp`` behind its name.
        whole: whether an editor that is not refused is tried, too; else nothing is said of it (``accepted``).
    """
    guard = Guard.of(lm)
    try:
        method = _configured(zoo, lm, editor)
        method.require(lm)
    except HarnessError as error:
        return Outcome("refused" if "\n" not in str(error) else "wrong", str(error))
    if not whole:
        return Outcome("accepted")
    try:
        found = _exact(lm, method) if isinstance(method, LocateThenEdit) else _works(lm, method)
    except Exception as error:
        found = Outcome("wrong", f"{type(error).__name__}: {error}")
    if left := guard.differing():
        return Outcome("wrong", f"it leaves {', '.join(left[:3])} behind")
    return found


def _configured(zoo: Zoo, lm: LM, editor: str) -> Editor:
    """The editor with quick settings, at layers that can be edited where there are some."""
    name, _, site = editor.partition(" site=")
    cls = find(name)
    settings = dict(EDITORS.get(name, {})) | ({"site": site} if site else {})
    experts = [i for i in lm.arch.writable if i not in lm.arch.editable]
    all_experts = issubclass(cls, LocateThenEdit) or name in _ALL_EXPERTS
    layers = (experts if all_experts else []) or list(lm.arch.editable) or [0]
    fields = cls.__dataclass_fields__
    if "layers" in fields and "layers" not in settings:
        settings["layers"] = layers[:2] if name in ("memit", "emmet", "alphaedit", "pmet") else layers[:1]
    if "layer" in fields and "layer" not in settings:
        settings["layer"] = layers[0]
    if name == "companion":
        settings["model"] = zoo.companion
    if name == "sae":
        settings["path"] = zoo.autoencoder(lm.arch.width)
    return configure(cls, "none of those with a preset", settings)


def _exact(lm: LM, method: LocateThenEdit) -> Outcome:
    """Whether the value that is optimised is the value that is written, and has the loss that was reported."""
    edit = EDITS[0]
    patch = method.edit(lm, [edit])
    objective = method.objective(method.edited_layers(lm)[-1])
    found = optimise(lm, [edit], ("{}",), objective=objective)
    place = (lm.arch.block if objective.seam == "block" else lm.arch.writer_of)(objective.layer)
    rows = prompt_rows(lm, edit, ("{}",), fact_token="subject_last")
    with patched(lm, patch):
        got = read_activations(lm, rows, outputs=[place]).outputs[place]

    def put(hidden: Tensor, _step: Step) -> Tensor:
        changed = hidden.clone()
        changed[:, rows[0].at] = got
        return changed

    # The change of weights reaches other tokens, too; what the loss speaks of is the subject's last alone.
    with patched(lm, Patch(hooks={place: put})):
        nll = -checks.log_likelihood(lm, edit) / len(lm.continuation(edit.text, edit.continuation))
    error = float((got - found.value).norm() / found.value.norm())
    gap = abs(nll - float(found.losses[0][-1, 1]))
    # PMET moves attention, too, while it optimises, and writes the rest alone.
    right = error < 1e-5 and (gap < 1e-4 or objective.seam == "parts")
    moved = float((got - found.start).norm() / found.start.norm())
    if not right or moved < 1e-2:
        return Outcome("wrong", f"value off by {error:.1e} after a move of {moved:.1e}, loss by {gap:.1e}", error, gap)
    return Outcome("exact", "", error, gap)


def _works(lm: LM, method: Editor) -> Outcome:
    """Whether an editor does what it is for, and the exam sees it: numbers and text are those of plain passes."""
    fitted = method.fit(lm, TRAIN) if isinstance(method, Learned) else method
    edits = EDITS if method.batch else EDITS[:1]
    patch = fitted.finish(lm, fitted.edit(lm, edits))
    if patch.empty != (method.name == "none"):
        return Outcome("wrong", "it changes nothing")
    before = [checks.log_likelihood(lm, edit) for edit in edits]
    with patched(lm, patch), torch.no_grad():
        after = [checks.log_likelihood(lm, edit, patch) for edit in edits]
        said = [_greedy(lm, patch.prompt(edit.text) if patch.prompt else edit.text) for edit in EDITS]
    gained = [new - old for old, new in zip(before, after, strict=True)]
    # What has learned for a few steps only cannot promise it.
    promised = keeps_promise(type(method), "target") and not isinstance(method, Learned)
    if promised and min(gained) < _LIKELIER:
        return Outcome("wrong", f"a target gains {min(gained):.3f} nats")
    scored, written = _examined(lm, patch, edits)
    if max(abs(a - b) for a, b in zip(scored, after, strict=True)) > _ROUNDING:
        return Outcome("wrong", f"the exam scores {scored}, a plain pass {after}")
    if written != said:
        return Outcome("wrong", f"the exam reads {written}, plain passes write {said}")
    return Outcome("works")


def _greedy(lm: LM, text: str) -> str:
    """The likeliest continuation, each token from a pass over all tokens before it."""
    ids = lm.encode(text)
    begun = len(ids)
    while len(ids) < begun + _WRITTEN and (len(ids) == begun or ids[-1] != lm.tokenizer.eos_token_id):
        row = torch.tensor([ids], device=lm.device)
        ids.append(
            int(lm.model(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False).logits[0, -1].argmax())
        )
    return str(lm.tokenizer.decode(ids[begun:], skip_special_tokens=True))


def _examined(lm: LM, patch: Patch, edits: Sequence[Edit]) -> tuple[list[float], list[str]]:
    """What the exam's adapter makes of a patched model: scores of targets, and what it writes after the prompts."""
    adapter = EditedLM(lm)
    ends = {"until": [], "max_gen_toks": _WRITTEN}
    asked = [Instance("loglikelihood", {}, (e.text, e.continuation), i) for i, e in enumerate(edits)]
    wanted = [Instance("generate_until", {}, (e.text, ends), i) for i, e in enumerate(EDITS)]
    with adapter.holding(patch):
        return [score for score, _ in adapter.loglikelihood(asked)], adapter.generate_until(wanted)


def measured(zoo: Zoo, family: str, only: Sequence[str] = ()) -> tuple[str, dict[str, Outcome]]:
    """Which layers of a family's model can be written, and what every editor does on it.

    Args:
        zoo: the models.
        family: one of them.
        only: the editors that are tried; by default all.
    """
    listed = [name for group in groups().values() for name in group]
    editors = [name for name in listed if not only or name.partition(" ")[0] in only]
    try:
        lm = zoo.model(family)
    except ModelError as error:
        return "", {name: Outcome("refused", str(error)) for name in editors}
    return _layers(lm), {e: outcome(zoo, lm, e) for e in editors}


def _layers(lm: LM) -> str:
    """Which layers have a down-projection of their own, and which only experts that are written as one."""
    own = lm.arch.editable
    experts = [layer for layer in lm.arch.writable if layer not in own]
    said = "all" if len(own) == lm.arch.layers else ", ".join(map(str, own))
    behind = (
        "experts" if len(experts) == lm.arch.layers else f"experts {', '.join(map(str, experts))}" if experts else ""
    )
    return "; ".join(part for part in (said, behind) if part) or "none"


INTRODUCTION = """\
# Which models can be edited

Measured with transformers {version} on a tiny random model of each of {count} families (`scripts/architectures.py`
writes this page, and the tests hold it to the models). A family is the `model_type` of its configuration.

* **exact**: at the subject's last token the edited module gives the optimised value to a relative 1e-5, and with this
  value there, and nowhere else, the model has the loss that the optimisation reports, to 1e-4 nats. The settings keep
  nothing back of a value (`lam`, `l2`: 1e-6). PMET moves the attention module, too, while it optimises: of it the value
  alone is compared.
* **works**: the change takes effect and makes its target likelier where the method promises that without having to
  learn first, the exam scores and writes what plain passes without a cache do, and the model is afterwards what it was.
* **refused**: one line says why, before anything is edited or measured; the lines stand below the table.

*Layers* are the blocks with a down-projection of their own, of three; the others are named when they are asked for. In
*experts* the down-projections of a layer's experts are one parameter, and editors that can write all of them at once
(locate-then-edit and fine-tuning) are tried there: what the experts write is `[W_1 ... W_E] [g_1 k_1; ...; g_E k_E]`,
with the router's weights `g` in the key (MoEEdit, arXiv 2602.10965). A wrapper (`rect`, `prune`, `nas`, `encore`,
`prefix`) goes where the editor goes that it wraps.
"""


def committed(text: str) -> dict[str, dict[str, Outcome]]:
    """What a page says of each family: editor -> outcome.

    Args:
        text: the page.
    """
    members = {
        title: re.findall(r"`([^`]+)`", names)
        for title, names in re.findall(r"^\* \*\*(.+?)\*\*: (`.*)$", text, re.MULTILINE)
    }
    head, _, *rows = (line.strip("|").split("|") for line in text.splitlines() if line[:1] == "|")
    said: dict[str, dict[str, Outcome]] = {}
    for family, _layers, *cells in rows:
        found = said.setdefault(family.strip(" `"), {})
        for title, words in zip(head[2:], cells, strict=True):
            usual, *others = words.strip().split("; ")
            own = dict(other.rsplit(" ", 1) for other in others)
            found.update({name: Outcome(own.get(name, usual)) for name in members[title.strip()]})
    for family, names, line in re.findall(r"^\* `([^`]+)`, ([^:]+): (.*)$", text, re.MULTILINE):
        first, *_ = methods = [name.partition(" ")[0] for name in names.split(", ")]
        lines = (re.sub(rf"\b{first}\b", method, line) for method in methods)  # the line is that of the first of them
        said[family].update(zip(names.split(", "), (Outcome("refused", each) for each in lines), strict=True))
    return said


def page(
    zoo: Zoo,
    families: Sequence[str],
    told: Callable[[str], None] = lambda _family: None,
    *,
    only: Sequence[str] = (),
    again: Sequence[str] | None = None,
) -> tuple[str, list[str]]:
    """The page, and what is wrong.

    Args:
        zoo: the models.
        families: which of them, in the order of the rows.
        told: told each family that is done.
        only: the editors that are tried; of the others stays what the page says. By default all are.
        again: the families that are tried; of the others stays what the page says. By default all are.
    """
    text = PAGE.read_text(encoding="utf-8")
    before = committed(text) if only or again else {}
    kept = dict(re.findall(r"^\| `([^`]+)` \| ([^|]*) \|", text, re.MULTILINE))
    head = ["family", "layers", *groups()]
    rows = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    why, wrong = [], []
    for family in families:
        layers, tried = measured(zoo, family, only) if again is None or family in again else (kept[family], {})
        found = _listed(family, {**before.get(family, {}), **tried})
        cells = [cell({name: found[name].verdict for name in group}) for group in groups().values()]
        rows.append("| " + " | ".join([f"`{family}`", layers, *cells]) + " |")
        why += [f"* `{family}`, {', '.join(names)}: {line}" for line, names in reasons(found).items()]
        wrong += [f"{family}, {name}: {one.reason}" for name, one in found.items() if one.verdict == "wrong"]
        told(family)
    members = [f"* **{group}**: {', '.join(f'`{name}`' for name in names)}" for group, names in groups().items()]
    begin = INTRODUCTION.format(version=transformers.__version__, count=len(families))
    return "\n".join([begin, *rows, "", "The columns:", "", *members, "", "## Why refused", "", *why, ""]), wrong


def _listed(family: str, found: Mapping[str, Outcome]) -> dict[str, Outcome]:
    """The outcomes of all editors, in the order of the columns, in lines that do not begin with the family."""
    listed = [name for group in groups().values() for name in group]
    missing = [name for name in listed if name not in found]
    if missing:
        raise SystemExit(f"the page says nothing of {', '.join(missing)}; name them in --only, too")
    return {name: replace(found[name], reason=found[name].reason.removeprefix(f"{family}: ")) for name in listed}


def cell(verdicts: Mapping[str, str]) -> str:
    """The word of a group, with the editors that differ from most of it."""
    usual = Counter(verdicts.values()).most_common(1)[0][0]
    others = [f"{name} {verdict}" for name, verdict in verdicts.items() if verdict != usual]
    return "; ".join([usual, *others])


def reasons(found: Mapping[str, Outcome]) -> dict[str, list[str]]:
    """The lines in which editors are refused, each with the editors."""
    lines: dict[str, tuple[str, list[str]]] = {}
    keys: dict[str, str] = {}
    for name, one in found.items():
        if one.verdict == "refused":
            # The line of the first of several that say the same, each of itself; a name may be a plain word of a line.
            method = name.partition(" ")[0]
            key = keys.setdefault(one.reason, re.sub(rf"\b{method}\b", "it", one.reason))
            lines.setdefault(key, (one.reason, []))[1].append(name)
    return dict(lines.values())


def main(arguments: Sequence[str]) -> int:
    """Write the page, or show a few rows of it; 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("families", nargs="*", help="show what is measured on these, and write nothing")
    parser.add_argument("--write", action="store_true", help="write what is measured on these families into the page")
    parser.add_argument("--only", default="", help="editors to try, separated by commas; of others the page stays")
    chosen = parser.parse_args(arguments)
    families, only = chosen.families, [name for name in chosen.only.split(",") if name]
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HARNESS_CACHE"] = f"{folder}/cache"
        show = functools.partial(print, file=sys.stderr)
        every = not families or chosen.write
        again = families if chosen.write and families else None
        text, wrong = page(Zoo(Path(folder)), known_families() if every else families, show, only=only, again=again)
    if not every:
        print(text[text.index("| family") :])
    else:
        PAGE.write_text(text, encoding="utf-8")
    print("\n".join(wrong), file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
