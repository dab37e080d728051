"""Where the publisher keeps its spool and the embedded event log."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from audit_logging.doctor.examinations import Asked, Finding, examine
from audit_logging.doctor.folders import look_at_folder, size_of

from ..conf import conf


@examine("folders", "publisher's spool")
def spool_folder(asked: Asked) -> Iterator[Finding]:
    """Room for all that it may hold."""
    if not conf.problems():
        folder = conf.spool_dir()
        used = size_of(*folder.glob("*.sqlite3")) if folder.is_dir() else 0
        yield from look_at_folder(
            "AUDIT_PUBLISHER_SPOOL_DIR", folder, max(0, conf.SPOOL_MAX_BYTES - used)
        )


@examine("folders", "embedded event log")
def local_logs(asked: Asked) -> Iterator[Finding]:
    """The folders of the regions that are files."""
    if conf.problems():
        return
    for region, url in conf.region_urls().items():
        if url.startswith("local:"):
            folder = Path(urlsplit(url).path).parent
            yield from look_at_folder(f"AUDIT_PUBLISHER_{region.upper()}_URL", folder, 0)
