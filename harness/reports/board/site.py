"""Folders of records to a site, which appears whole, and of which only what changed is made.

What takes seconds to import is imported where something is to be made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import DataError, UsageError
from harness.io.collector import without_collector
from harness.io.files import beside, discard
from harness.io.nobody import tell_nobody
from harness.reports.board.index import (
    MARK,
    SUBMISSION,
    MadeFamily,
    RecordSource,
    SiteIndex,
    code_sha256,
    read_index,
    sources_of,
    write_index,
)

if TYPE_CHECKING:
    from harness.reports.published_values import PublishedValue
    from harness.runs.crew.cells import Crew

__all__ = ["Built", "write_board"]

Json = dict[str, Any]
Report = Callable[[str, int, int], None]
"""Told what is done, how far it is, and how much there is."""


@dataclass(frozen=True)
class Built:
    """What was made.

    Attributes:
        records: the pages of records.
        sections: the tables.
        read: the records that were read; the others stand there from the last time.
    """

    records: int
    sections: int
    read: int


def write_board(
    folders: Sequence[Path],
    to: Path,
    *,
    published: Path | None = None,
    crew: Crew | None = None,
    report: Report = tell_nobody,
) -> Built:
    """Write a site of the records in some folders; it appears whole, or what was there stays.

    Args:
        folders: each with records in it or in its ``records`` folder, or with submissions.
        to: the folder of the site, which is new, empty, or a site that this function made.
        published: a table of values of papers, which stand beside the rows that they belong to.
        crew: who makes the pages of records that may share a table; None for this process.
        report: told how many records are done.

    Raises:
        UsageError: the folder holds something else, or cannot be written.
        DataError: a folder holds no record, one of them cannot be read or says something else than its documents, or
            two claim one id.
    """
    with without_collector():
        return _write_board(folders, to, published=published, crew=crew, report=report)


def _write_board(
    folders: Sequence[Path], to: Path, *, published: Path | None, crew: Crew | None, report: Report
) -> Built:
    sources = sources_of(_paths(folders))
    _require_free(to)
    beside_rows = _published(published)
    old = read_index(to, code_sha256(*([] if published is None else [published])))
    families, new = _families(sources, old)
    stale = {key: members for key, members in families.items() if not _stands(old, key, members)}
    if not stale and old.families.keys() == families.keys():
        return _counted(old.families.values(), read=0)
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        with beside(to) as temporary:
            jobs = {key: _FamilyJob(members, temporary, beside_rows) for key, members in stale.items()}
            made = _made(jobs, crew, report)
            _write(families, made, old=old, new=new, place=(to, temporary))
            _put_in_place(temporary, to)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UsageError(f"{to}: cannot be written ({reason}); choose another folder with --to") from error
    return _counted(new.families.values(), read=sum(len(members) for members in stale.values()))


def _paths(folders: Sequence[Path]) -> list[Path]:
    from harness.runs.record_file import record_paths

    found: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; give the folder that --output named")
        here = _given(folder) if (folder / SUBMISSION).is_file() else record_paths(folder) or _given(folder)
        if not here:
            raise DataError(f"{folder}: holds no record (*.json); make one with: harness run --output {folder}")
        found += here
    return list(dict.fromkeys(found))


def _given(folder: Path) -> list[Path]:
    """The records of the submissions in a folder, or of the one that it is."""
    if not any(folder.glob(f"*/{SUBMISSION}")) and not (folder / SUBMISSION).is_file():
        return []
    from harness.reports.submissions import submissions_in

    return [place / f"{place.name}.json" for place in submissions_in(folder)]


def _published(path: Path | None) -> tuple[PublishedValue, ...]:
    if path is None:
        return ()
    from harness.reports.published_values import read_published_values

    return tuple(read_published_values(path))


def _require_free(to: Path) -> None:
    if to.is_file() or (to.is_dir() and any(to.iterdir()) and not (to / MARK).is_file()):
        raise UsageError(f"{to}: holds something that is no board; give --to a new folder")


def _stands(old: SiteIndex, key: str, members: Sequence[RecordSource]) -> bool:
    """Whether an earlier site has a family as it is."""
    return key in old.families and old.families[key].members == [one.sha256 for one in members]


def _families(sources: Sequence[RecordSource], old: SiteIndex) -> tuple[dict[str, list[RecordSource]], SiteIndex]:
    """The records of each family, and a new index without the families; what the old one knows is not read."""
    families: dict[str, list[RecordSource]] = {}
    first: dict[str, RecordSource] = {}
    new = SiteIndex(old.code)
    for one in sources:
        if one.sha256 in new.records:
            continue
        record, family = old.records.get(one.sha256) or _told(one.path)
        if record in first:
            _require_same(one.path, first[record].path)
            continue
        first[record] = one
        new.records[one.sha256] = (record, family)
        families.setdefault(family, []).append(one)
    return families, new


def _told(path: Path) -> tuple[str, str]:
    from harness.reports.board.family import family_key
    from harness.runs.record_file import read_record

    record = read_record(path)
    return record.id, family_key(record)


def _require_same(path: Path, other: Path) -> None:
    """Two files may hold one record, and two runs of one plan may give the same numbers; others may not have one id."""
    from harness.runs.record_file import read_record

    if read_record(path).seal() != read_record(other).seal():
        raise DataError(f"{path}: claims the id of {other} with other numbers; leave one of them out")


@dataclass(frozen=True)
class _FamilyJob:
    """A family that is made.

    Attributes:
        members: its records.
        folder: of the site.
        published: values of papers.
    """

    members: Sequence[RecordSource]
    folder: Path
    published: tuple[PublishedValue, ...]


def _make(job: _FamilyJob, _report: Report) -> MadeFamily:
    """Write the pages of a family, wherever that is done."""
    from harness.reports.board.family import make_family
    from harness.reports.board.pages import Pages

    with without_collector():
        pages = Pages(job.folder)
        made = make_family(job.members, pages, job.published)
    return MadeFamily([one.sha256 for one in job.members], pages.written, asdict(made))


def _made(jobs: Mapping[str, _FamilyJob], crew: Crew | None, report: Report) -> dict[str, MadeFamily]:
    """Make families.

    Raises:
        DataError: one cannot be made.
    """
    done, total, found = 0, sum(len(job.members) for job in jobs.values()), {}
    report("records", done, total)
    for key, made in _each_made(jobs, crew):
        found[key] = made
        done += len(made.members)
        report("records", done, total)
    return found


def _each_made(jobs: Mapping[str, _FamilyJob], crew: Crew | None) -> Iterator[tuple[str, MadeFamily]]:
    if crew is None:
        yield from ((key, _make(job, tell_nobody)) for key, job in jobs.items())
        return
    from harness.runs.crew.cells import Cell
    from harness.runs.crew.dispatch import run_cells

    largest_first = sorted(jobs.items(), key=lambda one: -len(one[1].members))
    for one in run_cells([Cell(key, job) for key, job in largest_first], _make, crew):
        if one.error is not None:
            raise one.error
        assert one.done is not None
        yield one.cell.name, one.done


def _write(
    families: Mapping[str, Sequence[RecordSource]],
    made: Mapping[str, MadeFamily],
    *,
    old: SiteIndex,
    new: SiteIndex,
    place: tuple[Path, Path],
) -> None:
    """Complete a site of which the families that changed were made.

    Args:
        families: the records of each.
        made: the families that were made; the others are taken as they are.
        old: what stands at the place.
        new: what is made, to which the families are added.
        place: where the old site stands, and where the new one is written.
    """
    from harness.reports.board.family import Family
    from harness.reports.board.pages import Pages
    from harness.reports.board.shared_pages import write_shared_pages

    pages = Pages(place[1])
    for key in families:
        if key not in made:
            pages.keep(old.families[key].files, place[0])
        new.families[key] = made[key] if key in made else old.families[key]
    write_shared_pages([Family(**one.made) for one in new.families.values()], pages)
    write_index(new, place[1])


def _put_in_place(temporary: Path, to: Path) -> None:
    """The new site where the old one was; a rename each, so that a reader sees one of them whole."""
    with beside(to.with_name(f"{to.name}.old")) as old:
        if to.exists():
            to.rename(old)
        temporary.rename(to)
        discard(old)


def _counted(families: Iterable[MadeFamily], read: int) -> Built:
    made = [one.made for one in families]
    return Built(sum(len(one["records"]) for one in made), sum(len(one["sections"]) for one in made), read)
