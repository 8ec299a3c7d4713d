"""Rewrite records of schema 1 to schema 2, and prove on each of them that nothing but its identity changed.

    python scripts/migrate_records.py                the committed results
    python scripts/migrate_records.py FOLDER ...     other folders, with all that lies below them

Schema 2 makes an id of the fields of a plan that differ from their defaults, and names a task by its YAML and its rows
instead of the bytes of its files. A record is rewritten, renamed, and its values beside it with it, only if

* its old id is that of its plan, as schema 1 made ids;
* its tasks were measured with task files whose YAML says what today's says;
* the new file without its id, its schema and its templates is byte for byte the old file without them, and the values
  of documents are the same.

What cannot be proved stays as it is and is named; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.exam import data
from harness.exam.task_identity import definition, identity
from harness.io.files import json_text, pack_json, unpack_json, values_path, write_whole
from harness.runs.identity import SCHEMA, digest, record_id
from harness.runs.plan import Plan
from harness.runs.record import Record, record_name
from harness.studies.causal.trace import TraceSettings
from harness.studies.causal.tracing import TracePlan, study_name
from harness.studies.localization.localize import Grid, Method
from harness.studies.localization.problems import ProblemSettings
from harness.studies.remedi.benching import BenchPlan, bench_name
from harness.studies.sweeps.trial import Job

ROOT = Path(__file__).resolve().parents[1]
Json = dict[str, Any]
NAMED = ("id", "schema", "templates")
"""What may differ between an old record and its new form."""
EARLIER = {
    "ball": (
        "0605fd14712c9ab62a5b4e5f6cac63dec31c578c0509d568afdc8640e48ccfe3",
        "126bf08b89d4756ffdf2916cac19dcd5c4f93c383b5ac93738a3b96757960c76",
    ),
    "company_ceo": ("9a54b9561a61e5e2252a0ef0223388ae0b69047a88e692f85c1e8e78d4009e4a",),
    "country_capital": ("0b9fd9612113f6eba21c91b7e5f61dd7f26c958db09b806e5620ca43ba49c984",),
    "pronoun_gender_bias": ("d319aeee7bbecef1ec2b72ea80b8a3984466d92c170e3e6d0273c687dae6cd4c",),
    "stereoset": ("eaeeda55723361aa313155dc437f366f82d1bc69a0c7e0fe273213694fec8594",),
    "temporal": ("5f2864f3c24d0b2871d1c105dfe4055723d3c2b9d6a902375c517f4cc272e4f2",),
    "verb_conjugation": ("cf861491bbacc28b115ff85f2b3aa1e411cf8e528bdbe660135dee81077629d8",),
    "counterfact": (
        "9e77e8053a64f3b1672962d575854441164bfb2959be62ad42d1d16e5a4f0610",
        "cec74f1cf205373cfc904a78cee9628b9f7188ff8215ed03061651f6bec8e0f4",
    ),
    "own": (
        "d04e435eab2c040b0ef0c9bc1561dccd7425968cccb6696eacbba595310a319d",
        "c5338044454400db96de5d290f49d5b530ed3d597233b91a0d63507bf363e763",
    ),
    "zsre": ("2d9ba52d955737ab5c37fa69ab1fd99fa45682b6f745e16c2c5c0bd7565de8f8",),
    "ClosedDomainQA": ("097e594b7803ea07fe1c991965df76e261e3e96b0de532c04d7d10dca1db7123",),
    "NER": ("17bd796998c378d930ae5989532b9219b7e9d0aa6e65f5bb83e0b3f164ceb7b7",),
    "NLI": ("c1d5d8568024e648cd925198a2e0bc521bd0965b1a68b60bac418bc8c754d609",),
    "OpenDomainQA": ("376499715d82d1cc80c9cb5eddb7121e0e92488a21bef33e1180656f8d6d9e4f",),
    "SentimentAnalysis": ("47a150829e3701e6ab8829b420cdc1ce5b29c432cfd2c417804df9a4c0abb785",),
    "dialogue": ("1e2ea07e2cf44ffd948081e314063245b57c748aae394ea2ac1ba77ee80d4c25",),
    "reasoning": ("41a40222d38acb501608badd1b6ea6a337bda88b4f593a262163a1245e0e3a7b",),
    "summarization": ("b4132f7e3c567d834cafc62b294f6a8e69f7a22bfb6a3baaef3b3908f42d562f",),
    "bias_in_bios": (
        "ac5b562a5db1d3808bef885a706c9a99b64906734654458b76d35c10c65f9030",
        "1151c61d1d9c2dbe28adff1e425f0f49f4e0477b2cb1288393bc6341409edcd0",
    ),
    "mcrae": (
        "323acb0b55b0552ead80cdcadf36cce183755822d5bebbc3143c848b7450beb8",
        "2d6b3d8caa6758297a4778150755c6ba5c17e32d751ec9204410bc00419c2ead",
    ),
}
"""Hashes of task folders, as schema 1 took them, in which every YAML says what it says today."""


@dataclass(frozen=True)
class Rewritten:
    """A record in its new form.

    Attributes:
        kind: what it is a record of.
        path: where it lay.
        name: the new file name.
        content: the new record.
        old_id: the id that it had, "" where its file name alone held one.
    """

    kind: str
    path: Path
    name: str
    content: Json
    old_id: str = ""


class UnprovedError(Exception):
    """A record of which it cannot be proved that only its identity would change."""


# --- what each kind of record becomes ---------------------------------------------------------------------------------


def of_run(path: Path, old: Json) -> Rewritten:
    """The record of a run."""
    _require(old["id"] == digest(old["plan"]), "its id is not that of its plan")
    templates = {task: _task(task, sha256, old["data"]) for task, sha256 in old["templates"].items()}
    new = {**old, "schema": SCHEMA, "id": Plan.from_json(old["plan"]).id, "templates": templates}
    return Rewritten("run", path, f"{record_name(Record.from_json(new))}.json", new, old["id"])


def _task(name: str, earlier: str | None, rows: Mapping[str, Json]) -> str | None:
    """The identity of a task that a record of schema 1 knew by the bytes of its folder."""
    if earlier is None:  # one of lm-eval's own: its rows are not in the record
        return None
    source = _yaml(name)
    _require(earlier in EARLIER.get(source.parent.name, ()), f"the files of task {name} were others")
    shown = name if name in rows else source.parent.name
    return identity(_definition(source), rows[shown]["sha256"])


@lru_cache
def _yaml(name: str) -> Path:
    found = list(data.TASKS.rglob(f"{name}.yaml"))
    _require(len(found) == 1, f"there is no task {name}")
    return found[0]


_definition = lru_cache(definition)


def of_trace(path: Path, old: Json) -> Rewritten:
    """The record of causal tracing."""
    plan = TracePlan(**{**old["plan"], "settings": TraceSettings(**old["plan"]["settings"])})
    _require(old["id"] == digest(asdict(plan)), "its id is not that of its plan")
    new = {**old, "schema": 2, "id": record_id(plan, 2)}
    return Rewritten("trace", path, f"{study_name(new)}.json", new, old["id"])


def of_bench(path: Path, old: Json) -> Rewritten:
    """The record of a benchmark of REMEDI."""
    plan = BenchPlan(**{**old["plan"], "editors": tuple(old["plan"]["editors"])})
    _require(old["id"] == digest({**asdict(plan), "editors": list(plan.editors)}), "its id is not that of its plan")
    new = {**old, "schema": 2, "id": record_id(plan, 2)}
    return Rewritten("bench", path, f"{bench_name(new)}.json", new, old["id"])


def of_trial(path: Path, old: Json) -> Rewritten:
    """The record of one training of a sweep, which has its id in its name alone."""
    job = Job(**old["job"])
    stem, _, earlier = job.name.rpartition("--")
    _require(path.stem == f"{stem}--{digest(asdict(job))[:12]}", "its name is not that of its job")
    return Rewritten("trial", path, f"{stem}--{earlier}.json", {**old, "schema": 2})


KINDS: dict[str, Callable[[Path, Json], Rewritten]] = {"trace": of_trace, "bench": of_bench}


def read(path: Path) -> Rewritten | None:
    """The new form of a record; None where the file is none, or is of this schema already."""
    old = json.loads(path.read_bytes())
    if not isinstance(old, dict) or old.get("schema") != 1:
        return None
    if "job" in old:
        return of_trial(path, old)
    if "study" in old:
        return KINDS[old["study"]](path, old)
    return of_run(path, old) if "points" in old else None


# --- the proof, and the writing ---------------------------------------------------------------------------------------


def rewrite(new: Rewritten) -> None:
    """Prove that only the identity changes; then write the new files and remove the old ones."""
    before = new.path.read_bytes()
    old = json.loads(before)
    _require(_file(old) == before, "it is not written as this version writes")
    _require(_file(_rest(old)) == _file(_rest(new.content)), "more than its identity would change")
    path, beside = new.path.with_name(new.name), values_path(new.path)
    _require(path == new.path or not path.exists(), f"{new.name} is there already")
    if beside.is_file():
        write_whole(values_path(path), _values(new, beside.read_bytes()))
    write_whole(path, _file(new.content))
    for stale in {new.path, beside} - {path, values_path(path)}:
        stale.unlink(missing_ok=True)


def _values(new: Rewritten, before: bytes) -> bytes:
    """The values beside a record, which name it."""
    if not new.old_id:
        return before
    old = unpack_json(before)
    _require(old["id"] == new.old_id, "the values beside it are of another record")
    after = pack_json({**old, "schema": new.content["schema"], "id": new.content["id"]})
    _require(_file(_rest(unpack_json(after))) == _file(_rest(old)), "more than the identity of its values would change")
    return after


def _rest(record: Json) -> Json:
    return {key: value for key, value in record.items() if key not in NAMED}


def _file(record: Json) -> bytes:
    return (json_text(record) + "\n").encode()


def _require(proved: bool, otherwise: str) -> None:
    if not proved:
        raise UnprovedError(otherwise)


# --- files that are known by their names alone ------------------------------------------------------------------------


def rename_localizations(folder: Path) -> Iterator[tuple[str, str]]:
    """Rename the files of localisation studies; their content knows no id. Gives old and new names."""
    for path in sorted(folder.rglob("localize--*.json.gz")):
        plan = json.loads(gzip.decompress(path.read_bytes()))["plan"]
        stem = path.name.removesuffix(".json.gz")
        if not stem.endswith(digest(plan)[:8]):
            continue  # it has its new name
        new = f"{stem[:-8]}{_grid(plan).id[:8]}"
        for one in sorted(path.parent.glob(f"{stem}*")):
            one.rename(one.with_name(one.name.replace(stem, new)))
        yield stem, new


def _grid(plan: Json) -> Grid:
    given: Json = {key: tuple(value) if isinstance(value, list) else value for key, value in plan.items()}
    given["methods"] = tuple(Method.parse(name) for name in plan["methods"])
    given["trace"] = TraceSettings(**plan["trace"])
    given["asked"] = ProblemSettings(**{f.name: _tuple(plan["asked"][f.name]) for f in fields(ProblemSettings)})
    grid = Grid(**given)
    _require(grid.to_json() == plan, "its plan is not one of this version")
    return grid


def _tuple(value: Any) -> Any:
    return tuple(map(_tuple, value)) if isinstance(value, list) else value


def mend_links(folder: Path, renamed: Sequence[tuple[str, str]]) -> None:
    """Pages that name a renamed file name its new one."""
    for page in sorted(folder.rglob("*.md")):
        before = after = page.read_text(encoding="utf-8")
        for old, new in renamed:
            after = after.replace(old, new)
        if after != before:
            write_whole(page, after.encode())


# --- the call ---------------------------------------------------------------------------------------------------------


def main() -> None:
    """Rewrite what can be proved, and say how much it was."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, default=[ROOT / "results"])
    left = sum(migrate(folder) for folder in parser.parse_args().folders)
    sys.exit(1 if left else 0)


def migrate(folder: Path) -> int:
    """Rewrite the records in a folder and below; says how many, and gives how many it left as they are."""
    paths = sorted(path for path in folder.rglob("*.json") if not path.name.startswith("."))
    found = [(path, _one(path)) for path in paths]
    done = Counter(new.kind for _, new in found if isinstance(new, Rewritten))
    renamed = [(path.stem, Path(new.name).stem) for path, new in found if isinstance(new, Rewritten)]
    left = [f"{path}: left as it is, {why}" for path, why in found if isinstance(why, str)]
    try:
        localizations = list(rename_localizations(folder))
    except (UnprovedError, HarnessError, OSError, ValueError) as error:
        raise SystemExit(f"{folder}: a localisation study cannot be renamed, {error}") from error
    mend_links(folder, [*renamed, *localizations])
    for kind, count in sorted(done.items()):
        print(f"{folder}: {count} records of kind {kind} rewritten; id, schema and templates differ, all else is equal")
    print(f"{folder}: {len(localizations)} localisation studies renamed; {len(left)} records left as they are")
    print("".join(f"{line}\n" for line in left), end="", file=sys.stderr)
    return len(left)


def _one(path: Path) -> Rewritten | str | None:
    """What became of a record: its new form, why it stays, or None where it is none of schema 1."""
    try:
        new = read(path)
        if new is not None:
            rewrite(new)
    except (UnprovedError, HarnessError, KeyError, TypeError, ValueError) as error:
        return str(error)
    return new


if __name__ == "__main__":
    main()
