"""Celery's way in, one line each; the work is in `ingest`."""

from __future__ import annotations

from celery import shared_task


@shared_task(name="audit_sink.schedule", ignore_result=True)
def schedule() -> int:
    """Enqueue one `ingest` for each lane that has something to do; return how many."""
    from .ingest.schedule import enqueue_due

    return enqueue_due(ingest.delay)


@shared_task(name="audit_sink.ingest", ignore_result=True)
def ingest(sink: str, region: str, topic: str, partition: int) -> str:
    """Bring one lane forward; return the state it is left in."""
    from .ingest.run import ingest_key

    return ingest_key(sink, region, topic, partition).state


@shared_task(name="audit_sink.prune", ignore_result=True)
def prune() -> int:
    """Keep the ledger small: old request_ids and producers, batches without a record; return rows
    removed."""
    from .ingest.dedup import prune as prune_seen
    from .ingest.upkeep import merge_idle, prune_producers

    return prune_seen() + prune_producers() + merge_idle()
