"""Does the ledger agree with itself and with the buckets: gaps, overlaps, missing and odd files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from django.db.models import F, Sum

from ..exceptions import BucketError
from ..models import UNROUTABLE, Batch, LakeFile, Lane, Site
from .layout import EVENTS
from .storage import get_bucket


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    :ivar kind: ``gap``, ``overlap``, ``counts``, ``missing``, ``altered``, ``unknown_file`` or
        ``unreadable``.
    :ivar where: the lane, batch or file.
    :ivar message: what is wrong with it.
    """

    kind: str
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.where}: {self.message}"


def ledger_problems(*, contents: bool = True) -> list[Problem]:
    """Check the whole ledger, and the buckets against it; empty when all is well.

    :param contents: also read every file and compare its checksum.
    """
    return [*range_problems(), *count_problems(), *file_problems(contents=contents)]


def range_problems() -> Iterator[Problem]:
    """The batches of each lane follow each other without gap or overlap, from the lane's start."""
    starts = {lane.key: lane.start_offset for lane in Lane.objects.all()}
    rows = (
        Batch.objects.order_by("sink", "region", "topic", "partition", "start_offset")
        .values_list("sink", "region", "topic", "partition", "start_offset", "end_offset", "state")
        .iterator(chunk_size=5000)
    )
    for key, batches in groupby(rows, key=lambda row: row[:4]):
        where = f"{key[0]} {key[1]} {key[2]}/{key[3]}"
        expected = starts.get(key)
        unfinished = False
        for *_, start, end, state in batches:
            if expected is not None and start != expected:
                kind = "gap" if start > expected else "overlap"
                yield Problem(kind, where, f"a batch starts at {start}, not at {expected}")
            if unfinished:
                yield Problem("gap", where, f"the batch before {start} is not done")
            unfinished = state != Batch.State.DONE
            expected = end


def count_problems() -> Iterator[Problem]:
    """Every record that a done batch took was stored, a duplicate, or dead-lettered."""
    done = Batch.objects.filter(state=Batch.State.DONE)
    for batch in done.exclude(taken=F("stored") + F("duplicates") + F("dead_lettered")).iterator():
        yield Problem(
            "counts",
            str(batch),
            f"{batch.taken} taken, but {batch.stored} stored, {batch.duplicates} duplicates, "
            f"{batch.dead_lettered} dead-lettered",
        )
    sums = done.annotate(rows_in_files=Sum("files__rows", default=0))
    for batch in sums.exclude(stored=F("rows_in_files")).iterator():
        yield Problem(
            "counts", str(batch), f"{batch.stored} stored, {batch.rows_in_files} in its files"
        )


def file_problems(*, contents: bool = True) -> Iterator[Problem]:
    """Each file of the ledger is there unaltered, and each file there is in the ledger.

    Files of an unfinished claim are on their way, and no problem.
    """
    urls = {site.bucket_url for site in Site.objects.all()}
    urls |= set(LakeFile.objects.order_by().values_list("bucket", flat=True).distinct())
    claimed = tuple(
        f"/{batch.topic}-{batch.region}-{batch.partition}-{batch.start_offset}-{batch.end_offset}"
        ".parquet"
        for batch in Batch.objects.filter(state=Batch.State.CLAIMED).exclude(sink=UNROUTABLE)
    )
    for url in sorted(urls):
        known = {
            path: (size, sha256)
            for path, size, sha256 in LakeFile.objects.filter(bucket=url).values_list(
                "path", "bytes", "sha256"
            )
        }
        try:
            yield from _bucket_problems(url, known, claimed, contents=contents)
        except BucketError as error:
            if known:
                yield Problem("unreadable", url, str(error))


def _bucket_problems(
    url: str, known: dict[str, tuple[int, str]], claimed: tuple[str, ...], *, contents: bool
) -> Iterator[Problem]:
    bucket = get_bucket(url)
    there = set(bucket.list(f"{EVENTS}/"))
    for path in sorted(known.keys() - there):
        yield Problem("missing", f"{url}/{path}", "the ledger has it, the bucket does not")
    for path in sorted(there - known.keys()):
        if not path.endswith(claimed or ("\0",)):
            yield Problem("unknown_file", f"{url}/{path}", "no row of the ledger names it")
    for path in sorted(known.keys() & there):
        size, sha256 = known[path]
        if contents:
            if hashlib.sha256(bucket.read(path)).hexdigest() != sha256:
                yield Problem("altered", f"{url}/{path}", "its checksum is not the ledger's")
        elif bucket.size(path) != size:
            yield Problem("altered", f"{url}/{path}", "its size is not the ledger's")
