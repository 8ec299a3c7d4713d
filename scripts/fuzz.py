"""Read damaged files of every format, and see that each is either read or told in one line.

    python scripts/fuzz.py                      2,000 inputs of each format
    python scripts/fuzz.py --inputs 60 --only records --only patches --seed 3

An input is a whole file of its format that was changed: bits and bytes, a cut, another encoding, and, of what is JSON
inside, values of other types, numbers without end, half characters, deep nesting, fields that are missing. What has a
checksum is changed with it, too, as somebody would who knows how. What is neither read nor told by an error of the
harness in one line is kept in a folder and named; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import io
import json
import logging
import lzma
import os
import random
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from harness.editing import learned_file, patch_file
from harness.editing.edit import Edit
from harness.editing.editor import Learned
from harness.editing.registry import configure, find
from harness.editing.schedule import Begun
from harness.errors import HarnessError
from harness.exam import measure, tasks
from harness.exam.measure import Measured
from harness.exam.numbers import summarise
from harness.exam.statistics import Ratio
from harness.io import tensor_file
from harness.io.files import values_path
from harness.io.hashes import tensor_sha256
from harness.methods import second_moments
from harness.models.lm import LM, load
from harness.patches.delta import Dense, LowRank
from harness.patches.patch import Patch, patched
from harness.reports import terminal_tables
from harness.reports.leaderboard import leaderboard
from harness.runs import plan_grid
from harness.runs.plan import Plan
from harness.runs.record import PointValues, Record
from harness.runs.record_file import read_record, write_record
from harness.runs.resume import StateFile
from harness.runs.ties import untied

__all__ = ["FORMATS", "Fault", "fuzz"]

Json = Any
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 3, 2**70, 10**400, 1e308, float("inf"), float("nan"), "", "\ud800", "\x00", "../x", "x" * 5000,
    [], {}, [[]], {"": None}, [None], "1", 0.5, "\u202e", "{}", "NaN",
)  # fmt: skip
DEEP = 100_000
PLACES = 4000


@dataclass(frozen=True)
class Fault:
    """An input that was neither read nor told in one line.

    Attributes:
        path: where the input is kept.
        what: the end of the traceback, or the message that has several lines.
    """

    path: Path
    what: str


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        make: writes a whole file into a folder.
        read: reads it as the program does, and uses what was read.
        inside: changes what the file says, and puts the checksum right.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    inside: Callable[[Path, random.Random], None]


# --- what is done to a file -------------------------------------------------------------------------------------------


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Bytes that were changed somewhere."""
    found, place = bytearray(content), rng.randrange(max(len(content), 1))
    kind = rng.randrange(7)
    if kind == 0:
        return bytes(found[:place])
    if kind == 1 and found:
        found[place] ^= 1 << rng.randrange(8)
    elif kind == 2:
        found[place : place + rng.randrange(9)] = rng.randbytes(rng.randrange(9))
    elif kind == 3:
        found[place:place] = found[place : place + rng.randrange(200)]
    elif kind == 4:
        encoding = rng.choice(["utf-16", "utf-32", "latin-1", "utf-8-sig"])
        return content.decode("utf-8", "replace").encode(encoding, "replace")
    elif kind == 5:
        return rng.randbytes(rng.randrange(64))
    else:
        found += found[:place]
    return bytes(found)


def changed(value: Json, rng: random.Random) -> Json:
    """Plain data in which one place is another value, is gone, or is there twice."""
    places = list(_places(value))
    if not places or rng.random() < 0.03:
        return rng.choice(ODD)
    # Whoever chooses among all places changes numbers alone: the deeper, the more there are.
    holder, key = rng.choice([places[rng.randrange(len(places))], places[rng.randrange(min(len(places), 30))]])
    kind = rng.randrange(6)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[rng.choice(["extra", "\ud800", "", "0", "-1"])] = holder.pop(key)
    elif kind == 2 and isinstance(holder, list):
        holder.insert(key, rng.choice(ODD))
    elif kind == 3:
        other, name = rng.choice(places)
        holder[key] = json.loads(json.dumps(other[name]))
    else:
        holder[key] = rng.choice(ODD)
    return value


def _places(value: Json) -> Iterator[tuple[Any, Any]]:
    """Every place in some plain data, the outer ones first."""
    waiting, count = [value], 0
    while waiting and count < PLACES:
        one = waiting.pop(0)
        items = list(one.items() if isinstance(one, dict) else enumerate(one) if isinstance(one, list) else ())
        for key, inner in items:
            yield one, key
            waiting.append(inner)
        count += len(items)


def written(value: Json, rng: random.Random) -> str:
    """JSON, sometimes nested without end, sometimes with half characters as they are."""
    if rng.random() < 0.02:
        return "[" * DEEP + "]" * DEEP
    return json.dumps(value, ensure_ascii=rng.random() < 0.9)


def _as_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _plain(path: Path, rng: random.Random) -> None:
    path.write_bytes(_as_bytes(written(changed(json.loads(path.read_bytes()), rng), rng)))


def _lines(path: Path, rng: random.Random) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    place = rng.randrange(len(rows))
    rows[place] = changed(rows[place], rng)
    path.write_bytes(_as_bytes("\n".join(written(row, rng) for row in rows)))


def _packed(path: Path, rng: random.Random) -> None:
    value = changed(json.loads(lzma.decompress(path.read_bytes())), rng)
    path.write_bytes(lzma.compress(_as_bytes(written(value, rng)), preset=0))


def _zipped(path: Path, rng: random.Random) -> None:
    value = changed(json.loads(gzip.decompress(path.read_bytes())), rng)
    path.write_bytes(gzip.compress(_as_bytes(written(value, rng)), 1))


def _opened(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata()), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _tensors(path: Path, rng: random.Random) -> None:
    """The manifest or the tensors of a file of ours, with the checksums of what stands there then."""
    metadata, tensors = _opened(path)
    head = json.loads(metadata["manifest"].partition(" ")[2])
    if rng.random() < 0.5:
        head = changed(head, rng)
    else:
        _change_tensors(tensors, rng)
    if isinstance(head, dict) and "sha256" in head and rng.random() < 0.9:
        head["sha256"] = tensor_file.content_sha256(tensors)
    text = written(head, rng)
    with contextlib.suppress(UnicodeEncodeError):
        digest = hashlib.sha256(_as_bytes(text)).hexdigest()
        save_file(tensors, path, metadata={"manifest": f"{digest} {text}"})


def _change_tensors(tensors: dict[str, Tensor], rng: random.Random) -> None:
    name = rng.choice(sorted(tensors))
    tensor, kind = tensors[name], rng.randrange(6)
    if kind == 0:
        del tensors[name]
    elif kind == 1:
        tensors[rng.choice(["extra", "weights/x::left", "weights/::value", name + "x"])] = tensors.pop(name)
    elif kind == 2:
        tensors[name] = tensor.reshape(-1)[: rng.randrange(tensor.numel() + 1)].clone()
    elif kind == 3:
        tensors[name] = tensor.to(rng.choice([torch.int64, torch.bool, torch.float16, torch.uint8]))
    elif kind == 4:
        tensors[name] = torch.full_like(tensor, rng.choice([0, 1, 200])).unsqueeze(0)
    elif tensor.is_floating_point():
        tensors[name] = torch.full_like(tensor, rng.choice([float("nan"), float("inf"), 1e30]))


def _moment(path: Path, rng: random.Random) -> None:
    metadata, tensors = _opened(path)
    if rng.random() < 0.6:
        key = rng.choice([*metadata, "manifest"])
        if key == "manifest":
            metadata[key] = written(changed(json.loads(metadata[key]), rng), rng)
        else:
            metadata[key] = rng.choice(["", "-1", "x", "9" * 5000, "nan", "10"])
    else:
        _change_tensors(tensors, rng)
        metadata["sha256"] = tensor_sha256(next(iter(tensors.values()), torch.zeros(1)))
    if rng.random() < 0.8:
        metadata["head"] = second_moments.head_sha256(metadata)
    with contextlib.suppress(UnicodeEncodeError):
        save_file(tensors, path, metadata=metadata)


# --- whole files, and how they are read -------------------------------------------------------------------------------

EDITS = [Edit(str(i), "The home of {} is", who, "Rome", "Oslo") for i, who in enumerate(["Ada", "Hugo", "Iris"])]
SEED = 0


def _model() -> LM:
    if not _MODEL:
        _MODEL.append(load("mini", device="cpu"))
    return _MODEL[0]


_MODEL: list[LM] = []


def _make_edits(folder: Path) -> Path:
    rows = [asdict(edit) for edit in EDITS]
    named = [{key: row[key] for key in ("id", "prompt", "subject", "target", "target_old")} for row in rows]
    path = folder / "edits.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in named))
    return path


def _make_array(folder: Path) -> Path:
    rows = [json.loads(line) for line in _make_edits(folder).read_text().splitlines()]
    path = folder / "edits.json"
    path.write_text(json.dumps(rows, indent=1))
    return path


def _read_edits(path: Path) -> None:
    tasks.read_edits(str(path), data_dir="mini")


def _make_plan(folder: Path) -> Path:
    fields = {**Plan(tasks=("NLI",)).to_json(), "settings": {"layers": [0], "v_lr": 0.5}, "arch": {"block": "x"}}
    path = folder / "plan.yaml"
    path.write_text(json.dumps(fields))
    return path


def _read_plan(path: Path) -> None:
    for plan in plan_grid.plans(Plan.read(path), where=str(path)):
        assert plan.id


def _record() -> Record:
    values: PointValues = {
        0: {"NLI": {"accuracy": {f"NLI/{i}": Ratio(float(i % 2), 1.0, f"c{i // 2}") for i in range(6)}}},
        3: {"NLI": {"accuracy": {f"NLI/{i}": Ratio(float(i % 3 == 0), 1.0, f"c{i // 2}") for i in range(6)}}},
    }
    points = []
    for count, measured in values.items():
        base = values[0]["NLI"] if count else None
        points.append({"edits": count, "tasks": {"NLI": summarise(measured["NLI"], base, {"accuracy": True}, seed=0)}})
    points[1] |= {"weights": {"w": {"rank": 1.0, "norm_ratio": 1.5}}, "truncated": {"NLI": 2}}
    return Record(
        id="0" * 16,
        plan=Plan(editor="rome", tasks=("NLI",)).to_json(),
        status="complete",
        model={
            "name": "mini",
            "sha256": "a",
            "parameters": 7,
            "dtype": "float32",
            "architecture": "X",
            "device": "cpu",
        },
        editor={
            "name": "rome",
            "hyperparameters": {"layers": [0]},
            "notes": {"n": 1.0},
            "learned": None,
            "sources": {},
        },
        edits={
            "dataset": "own",
            "count": 3,
            "unique": 3,
            "contradicting": 0,
            "ids": ["a"],
            "sha256": "b",
            "warnings": [],
        },
        headlines={"NLI": "accuracy"},
        points=points,
        collapse={"norm": 3},
        weights={"before": {"w": "a"}, "edited": {"w": "b"}, "restored": {"w": "a"}},
        delta={"w": {"rank": 1.0, "norm_ratio": 1.5}},
        data={"NLI": {"source": "mini", "path": "x", "sha256": "c", "rows": 6, "verified": True}},
        templates={"NLI": "d"},
        cost=[{"phase": "edit", "seconds": 1.0, "peak_memory_mib": 2.0}],
        versions={"python": "3"},
        values=values,
    )


def _make_record(folder: Path) -> Path:
    path = folder / "record.json"
    write_record(path, _record(), small=False)
    return path


def _make_values(folder: Path) -> Path:
    return values_path(_make_record(folder))


def _read_record(path: Path) -> None:
    found = read_record(path, values=True)
    list(untied(found))
    show = Console(file=io.StringIO(), width=100)
    show.print(terminal_tables.record_table(found))
    show.print(terminal_tables.comparison_table(_record(), found))
    leaderboard([found, replace(_record(), seed=1)])


def _read_values(path: Path) -> None:
    _read_record(path.with_name("record.json"))


def _make_patch(folder: Path) -> Path:
    path, lm = folder / "patch.safetensors", _model()
    name, bias = lm.down(1), lm.down(1).replace("weight", "bias")
    out, width = lm.matrix(name).shape
    low = LowRank(torch.full((out, 1), 0.01), torch.full((1, width), 0.01))
    change = Patch({name: low, bias: Dense(torch.zeros(out))})
    patch_file.save_patch(change, lm, path, editor="rome", about={"dtype": "float32"})
    return path


def _read_patch(path: Path) -> None:
    patch_file.patch_manifest(path)
    _use(patch_file.load_patch(path, _model()))


def _use(patch: Patch) -> None:
    lm = _model()
    with patched(lm, patch), torch.no_grad():
        lm.model(input_ids=torch.tensor([[1, 2, 3]]))


def _learner() -> Learned:
    made = configure(find("ike"), "mini", {"k": 2})
    assert isinstance(made, Learned)
    return made


def _make_fitted(folder: Path) -> Path:
    row = {"fact": "A is B", "prompt": "A is", "new": "B", "old": "C", "update": ["A"], "retain": ["D"]}
    corpus = torch.frombuffer(bytearray(json.dumps([row]).encode()), dtype=torch.uint8)
    path = folder / "ike.safetensors"
    learned_file.save_learned(
        replace(_learner(), learned={"corpus": corpus}), _model(), path, trained={"edits": "zsre"}
    )
    return path


def _read_fitted(path: Path) -> None:
    editor = learned_file.load_learned(_learner(), _model(), path)
    editor.edit(_model(), EDITS[:1])


def _network() -> Learned:
    made = configure(find("mend"), "other", {"layers": [1], "rank": 2})
    assert isinstance(made, Learned)
    return made


def _map() -> Learned:
    made = configure(find("remedi"), "other", {"layer": 1})
    assert isinstance(made, Learned)
    return made


def _make_network(folder: Path) -> Path:
    return _save_numbers(_network(), folder / "mend.safetensors")


def _make_map(folder: Path) -> Path:
    return _save_numbers(_map(), folder / "remedi.safetensors")


def _save_numbers(editor: Learned, path: Path) -> Path:
    """A file of an editor that learned the number 2 everywhere."""
    wanted = editor.layout(_model())
    assert wanted is not None
    learned = {name: torch.full_like(tensor, 2, device="cpu") for name, tensor in wanted.items()}
    learned_file.save_learned(replace(editor, learned=learned), _model(), path, trained={"edits": "zsre"})
    return path


def _read_network(path: Path) -> None:
    learned_file.load_learned(_network(), _model(), path).edit(_model(), EDITS[:1])


def _read_map(path: Path) -> None:
    _use(learned_file.load_learned(_map(), _model(), path).edit(_model(), EDITS[:1]))


def _make_moment(folder: Path) -> Path:
    second_moments.moments(_model(), [0], tokens=100, folder=folder)
    (found,) = folder.glob("*.safetensors")
    return found


def _read_moment(path: Path) -> None:
    second_moments.cached_moments(path.parent)
    found = second_moments.verify_cached(path, _model())
    assert torch.isfinite(found.matrix).all()


def _make_state(folder: Path) -> Path:
    total = Patch({_model().down(1): LowRank(torch.ones(128, 1) * 0.01, torch.ones(1, 512) * 0.01)}, memory=(1, "x"))
    StateFile(folder / "x.state", "key", every=0).keep(Begun(2, total, range(1, 2)))
    return folder / "x.state"


def _read_state(path: Path) -> None:
    found = StateFile(path, "key", lm=_model()).read()
    if found is not None:
        _use(found.total)


KEY = "f" * 64


def _make_unedited(folder: Path) -> Path:
    values = {"accuracy": {f"NLI/{i}": Ratio(float(i % 2), 1.0, "c", None) for i in range(4)}}
    os.environ["HARNESS_CACHE"] = str(folder)
    measure.save_base(KEY, Measured(values, {"f1": 0.5}, {"NLI/0": "x"}, {"NLI/0": {"case": "1"}}, 2))
    return folder / "unedited" / f"{KEY}.json.gz"


def _read_unedited(path: Path) -> None:
    os.environ["HARNESS_CACHE"] = str(path.parents[1])
    found = measure.load_base(KEY)
    if found is not None:
        summarise(found.values, None, {}, seed=0, plain=found.plain)


FORMATS: dict[str, Format] = {
    "edits": Format(_make_edits, _read_edits, _lines),
    "arrays": Format(_make_array, _read_edits, _plain),
    "plans": Format(_make_plan, _read_plan, _plain),
    "records": Format(_make_record, _read_record, _plain),
    "values": Format(_make_values, _read_values, _packed),
    "patches": Format(_make_patch, _read_patch, _tensors),
    "fitted": Format(_make_fitted, _read_fitted, _tensors),
    "networks": Format(_make_network, _read_network, _tensors),
    "maps": Format(_make_map, _read_map, _tensors),
    "moments": Format(_make_moment, _read_moment, _moment),
    "state": Format(_make_state, _read_state, _tensors),
    "unedited": Format(_make_unedited, _read_unedited, _zipped),
}


# --- the call ---------------------------------------------------------------------------------------------------------


def fuzz(name: str, inputs: int, *, seed: int, keep: Path) -> list[Fault]:
    """Read damaged files of one format.

    Args:
        name: of the format.
        inputs: how many.
        seed: of all that is random.
        keep: the folder in which inputs stay that were neither read nor told.
    """
    rng, kind, faults = random.Random(f"{seed} {name}"), FORMATS[name], []
    with tempfile.TemporaryDirectory() as folder:
        path = kind.make(Path(folder))
        whole = {one: one.read_bytes() for one in Path(folder).rglob("*") if one.is_file()}
        for number in range(inputs):
            for one, content in whole.items():
                one.write_bytes(content)
            if number:  # the first is read as it is
                _harm(path, kind, rng)
            what = _fault(kind, path)
            if what:
                keep.mkdir(parents=True, exist_ok=True)
                faults.append(Fault(keep / f"{name}-{seed}-{number}{path.suffix}", what))
                shutil.copy(path, faults[-1].path)
    return faults


def _harm(path: Path, kind: Format, rng: random.Random) -> None:
    try:
        if rng.random() < 0.6:
            kind.inside(path, rng)
            return
    except (SafetensorError, TypeError, ValueError, OverflowError, RecursionError):
        pass  # no file can say this
    path.write_bytes(damaged(path.read_bytes(), rng))


def _fault(kind: Format, path: Path) -> str:
    """What is wrong with how an input is read; empty where nothing is."""
    try:
        kind.read(path)
    except HarnessError as error:
        message = str(error)
        # A terminal must be able to show it.
        encodable = message.encode("utf-8", "ignore").decode() == message
        return "" if message.strip() and len(message.splitlines()) == 1 and encodable else f"not one line: {message!r}"
    except Exception:
        return "".join(traceback.format_exc().splitlines(keepends=True)[-7:])
    return ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Read damaged files, and say how many were told."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=2000, help="of each format")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--only", action="append", choices=list(FORMATS), help="a format; may be given several times")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-faults"), help="where inputs stay that fail")
    asked = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    count = 0
    for name in asked.only or FORMATS:
        faults = fuzz(name, asked.inputs, seed=asked.seed, keep=asked.keep)
        count += len(faults)
        print(f"{name}: {asked.inputs} inputs, {len(faults)} neither read nor told in one line", flush=True)
        for fault in faults[:5]:
            print(f"{fault.path}\n{fault.what}", file=sys.stderr)
    sys.exit(1 if count else 0)


if __name__ == "__main__":
    main()
