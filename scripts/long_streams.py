"""What an edit costs, and what is kept, over thousands of edits one after the other.

    python scripts/long_streams.py                        the streams of results/long-streams.csv that are missing
    python scripts/long_streams.py --stream rome:1:2000   one of them: an editor, edits of an operation, edits

The facts are invented: a subject of two names of the mini world that belong together nowhere, a prompt and a target of
its CounterFact rows; none is edited twice.  What an operation costs is the processor time of this process, all of its
threads, and the memory it holds behind it; measuring is not counted.  Kept is a fact whose target is what the model
says next, asked of a seeded sample of the facts so far, with a Wilson interval.
"""

from __future__ import annotations

import argparse
import csv
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from statsmodels.stats.proportion import proportion_confint

from harness.editing.edit import Edit
from harness.editing.registry import compose
from harness.editing.schedule import Begun, walk
from harness.exam import tasks
from harness.models.lm import LM, load
from harness.patches.patch import Patch, patched

PATH = Path(__file__).parents[1] / "results" / "long-streams.csv"
STREAMS = ("ultraedit:100:10000", "memit:100:10000", "grace:1:10000", "rag:100:10000", "rome:1:2000")
FIELDS = ("model", "editor", "at_once", "edits", "ms_per_edit", "mib", "asked", "kept", "low", "high")
POINTS = 20
"""Into how many portions of equal length a stream is divided, each a row."""
SAMPLE = 200


@dataclass(frozen=True)
class Stream:
    """Edits one after the other.

    Attributes:
        model: the model's name.
        editor: the method.
        at_once: edits of an operation.
        count: edits in all.
    """

    model: str
    editor: str
    at_once: int
    count: int


@dataclass
class Watch:
    """Counts processor time between operations.

    Attributes:
        since: the processor time at which the counted time began.
        spent: seconds since the last row.
    """

    since: float = field(default_factory=time.process_time)
    spent: float = 0.0

    def stop(self, _begun: Begun | None = None) -> None:
        """Count what has gone by."""
        now = time.process_time()
        self.spent, self.since = self.spent + now - self.since, now

    def begin(self) -> None:
        """Count from now, from zero."""
        self.since, self.spent = time.process_time(), 0.0


def facts(count: int, seed: int = 0) -> list[Edit]:
    """Invented facts, no subject twice.

    Args:
        count: how many.
        seed: of which names meet, and what is said of them.
    """
    rows = [edit for edit in tasks.read_edits("counterfact", data_dir="mini", count=200) if edit.subject]
    names = sorted({tuple(str(edit.subject).split()) for edit in rows if len(str(edit.subject).split()) == 2})
    pairs = sorted({(first, last) for first, _ in names for _, last in names} - set(names))
    draw = random.Random(seed)
    if count > len(pairs):
        raise SystemExit(
            f"{count} facts, but the names of the mini world make {len(pairs)} new subjects; ask for fewer"
        )
    drawn = zip(draw.sample(pairs, count), draw.choices(rows, k=count), strict=True)
    return [replace(row, id=str(i), subject=" ".join(pair), target_old=None) for i, (pair, row) in enumerate(drawn)]


def kept(lm: LM, patch: Patch, edits: Sequence[Edit]) -> int:
    """Of how many facts the patched model says the first token of the target next."""
    told = patch.prompt or (lambda text: text)
    right = 0
    with patched(lm, patch), torch.no_grad():
        for start in range(0, len(edits), 50):
            chosen = edits[start : start + 50]
            rows = lm.batch([lm.encode(told(edit.text)) for edit in chosen])
            last = rows.mask.sum(1) - 1
            logits = lm.model(input_ids=rows.ids, attention_mask=rows.mask, use_cache=False).logits
            said = logits[torch.arange(len(chosen)), last].argmax(-1).tolist()
            wanted = [lm.continuation(edit.text, edit.continuation)[0] for edit in chosen]
            right += sum(a == b for a, b in zip(said, wanted, strict=True))
    return right


def resident() -> float:
    """The memory that this process holds, MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise SystemExit("/proc does not say what memory this process holds; run this on Linux")


def measured(stream: Stream) -> Iterator[dict[str, object]]:
    """A row for each portion of a stream."""
    lm = load(stream.model, device="cpu")
    method = compose(stream.editor).build(lm, {}, seed=0)
    edits, step = facts(stream.count), stream.count // POINTS
    yield _row(stream, 0, Patch(), lm, edits, spent=None)
    at, watch = list(range(step, stream.count + 1, step)), Watch()
    for stop in walk(method, lm, edits, mode="sequential", batch_size=stream.at_once, at=at, keep=watch.stop):
        yield _row(stream, stop.edits, stop.patches[0], lm, edits, spent=watch.spent / step)
        watch.begin()


def _row(
    stream: Stream, count: int, patch: Patch, lm: LM, edits: Sequence[Edit], *, spent: float | None
) -> dict[str, object]:
    """What is measured after so many edits; of the unedited model on a sample of all facts."""
    held, known = resident(), edits[: count or len(edits)]
    asked = random.Random(count).sample(known, min(SAMPLE, len(known)))
    right = kept(lm, patch, asked)
    low, high = proportion_confint(right, len(asked), method="wilson")
    return {
        "model": stream.model,
        "editor": stream.editor,
        "at_once": stream.at_once,
        "edits": count,
        "ms_per_edit": "" if spent is None else f"{1000 * spent:.2f}",
        "mib": f"{held:.0f}",
        "asked": len(asked),
        "kept": f"{right / len(asked):.3f}",
        "low": f"{low:.3f}",
        "high": f"{high:.3f}",
    }


def main(arguments: Sequence[str]) -> int:
    """Measure the streams that are missing, or the one that is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="mini")
    parser.add_argument("--stream", action="append", help="EDITOR:AT_ONCE:EDITS (default: all that are missing)")
    parser.add_argument("--to", type=Path, default=PATH)
    chosen = parser.parse_args(arguments)
    rows = list(csv.DictReader(chosen.to.open(encoding="utf-8"))) if chosen.to.exists() else []
    there = {(row["model"], row["editor"]) for row in rows}
    for name in chosen.stream or STREAMS:
        editor, at_once, count = name.split(":")
        if (chosen.model, editor) in there and not chosen.stream:
            continue
        found = [row for row in rows if (row["model"], row["editor"]) != (chosen.model, editor)]
        for row in measured(Stream(chosen.model, editor, int(at_once), int(count))):
            print(*row.values(), flush=True)
            found.append({name: str(value) for name, value in row.items()})
            write(chosen.to, found)
        rows = found
    return 0


def write(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Write what is measured so far."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
