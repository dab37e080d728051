"""Every metric of the publisher, with what to do about it.

received = published + spooled + rejected, always: it is their sum, made when they are read, so that
no moment and no crash comes between them. They count producer records like events.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, Metric

from audit_logging import monitoring

PRODUCER_RECORDS = Counter(
    "audit_publisher_producer_records_total",
    "Of what was received and is valid: the records by which capture processes say how many events "
    "they have numbered. None for minutes while events come in: those services are older, or their "
    "background threads fail (audit_log_internal_errors_total).",
)
PUBLISHED = Counter(
    "audit_publisher_events_published_total",
    "Events that a region of the event log acknowledged, for a request.",
    ["region"],
)
SPOOLED = Counter(
    "audit_publisher_events_spooled_total",
    "Events put on disk because no region took them: region_unavailable (look at "
    "audit_publisher_region_up), unknown_topic (create it: manage.py audit_topics --create) or "
    "backpressure (the region is slow, or MAX_QUEUED_BYTES is too small).",
    ["reason"],
)
REJECTED = Counter(
    "audit_publisher_events_rejected_total",
    "Events not taken: invalid, not_json, too_large, service_not_allowed, caller_not_allowed "
    "(see Consumers in the admin) or refused_by_log (the "
    "sender must change; its log names the field), odd_time (set the sender's clock, or raise "
    "MAX_EVENT_AGE_DAYS), no_storage (spool full or its disk failed: "
    "raise SPOOL_MAX_BYTES or bring a region back), backpressure (add publishers), "
    "no_schema (the registry has to answer once).",
    ["reason"],
)
HEADERS_LEFT_OUT = Counter(
    "audit_publisher_headers_left_out_total",
    "Values in events' own headers that records do not carry as a header beside them, for they "
    "are too long or hold control characters; the events keep them. Many: an audited service's "
    "callers, or a proxy before it, send odd values.",
    ["header"],
)
REQUESTS = Counter(
    "audit_publisher_requests_total",
    "Answers by operation and HTTP status. Many 401: see audit_publisher_signatures_total.",
    ["operation", "status"],
)
SIGNATURES = Counter(
    "audit_publisher_signatures_total",
    "Signature checks by result. `expired` and `future`: a clock is wrong; `unknown_key`: "
    "register the key (manage.py audit_key add); `duplicate`: a proxy merges headers; "
    "`bad_digest`: something between changes bodies; `replayed`: a request came again that was "
    "taken, from a client that does not sign each try anew or from somebody who listened.",
    ["result"],
)
REPLAYS_UNSEEN = Counter(
    "audit_publisher_replays_unseen_total",
    "Signed requests that were taken without knowing whether they were taken before. `store`: "
    "REPLAY_CACHE, or the file in the spool's folder, failed; the log says how. `full`: more "
    "than some 300,000 requests were taken within SIGNATURE_MAX_AGE: shorten it, or use "
    "REPLAY_CACHE.",
    ["reason"],
)
FAILOVERS = Counter(
    "audit_publisher_failovers_total",
    "Times a region was given up for the time being, by cause. Look at that region.",
    ["region", "cause"],
)
REGION_UP = Gauge(
    "audit_publisher_region_up",
    "1 while the region answers and has every topic; 0: /health/ready says what is wrong.",
    ["region"],
    multiprocess_mode="livemin",
)
APPEND_SECONDS = Histogram(
    "audit_publisher_append_seconds",
    "How long a region took to acknowledge. Near DELIVERY_TIMEOUT: the region is overloaded.",
    ["region"],
    buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
REQUEST_SECONDS = Histogram(
    "audit_publisher_request_seconds",
    "How long a request took, by operation.",
    ["operation"],
    buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
SPOOL_RECORDS = Gauge(
    "audit_publisher_spool_records",
    "Records on disk that wait for a region. Grows while no region is up; should fall to 0 after.",
    multiprocess_mode="mostrecent",
)
SPOOL_BYTES = Gauge(
    "audit_publisher_spool_bytes",
    "Bytes of those records. Near SPOOL_MAX_BYTES events will be refused.",
    multiprocess_mode="mostrecent",
)
SPOOL_MAX_BYTES = Gauge(
    "audit_publisher_spool_max_bytes",
    "SPOOL_MAX_BYTES, to compare with.",
    multiprocess_mode="mostrecent",
)
SPOOL_OLDEST = Gauge(
    "audit_publisher_spool_oldest_seconds",
    "For how long the oldest record of the spool has waited; 0: none waits. Grows while no region "
    "takes records, or a region takes those of other keys alone.",
    multiprocess_mode="mostrecent",
)
SPOOL_REFUSED = Gauge(
    "audit_publisher_spool_refused_records",
    "Records that the event log refused for good and that wait for somebody's decision: manage.py "
    "audit_publisher_spool redrive or discard.",
    multiprocess_mode="mostrecent",
)
DRAINED = Counter(
    "audit_publisher_spool_drained_total",
    "Records moved from the spool to a region.",
    ["region"],
)
DRAIN_REFUSED = Counter(
    "audit_publisher_spool_refused_total",
    "Spooled records that the event log refuses for good; kept in the spool's stream #refused.",
)
IN_FLIGHT_BYTES = Gauge(
    "audit_publisher_in_flight_bytes",
    "Bytes of the bodies that are being read or made durable. At MAX_IN_FLIGHT_BYTES of each "
    "process requests are sent away with 429: add publishers, or look at the regions.",
    multiprocess_mode="livesum",
)
SENT_AWAY = Counter(
    "audit_publisher_requests_sent_away_total",
    "Requests answered 429 because MAX_IN_FLIGHT_BYTES were under way, before their body was read "
    "or in the middle of it. None of their events is counted as received.",
)


@cache
def requests(operation: str, status: int) -> Any:
    """REQUESTS of an operation's answers."""
    return REQUESTS.labels(operation, str(status))


@cache
def request_seconds(operation: str) -> Any:
    """REQUEST_SECONDS of an operation."""
    return REQUEST_SECONDS.labels(operation)


@cache
def published(region: str) -> Any:
    """PUBLISHED of a region; a look-up of labels takes longer than to count."""
    return PUBLISHED.labels(region)


@cache
def append_seconds(region: str) -> Any:
    """APPEND_SECONDS of a region."""
    return APPEND_SECONDS.labels(region)


_PARTS = frozenset(
    f"audit_publisher_events_{part}" for part in ("published", "spooled", "rejected")
)


def received(families: Iterable[Metric]) -> Iterator[Metric]:
    """The counter of all events, from those of what became of them."""
    total = sum(
        sample.value
        for family in families
        if family.name in _PARTS
        for sample in family.samples
        if sample.name.endswith("_total")
    )
    yield CounterMetricFamily(
        "audit_publisher_events_received",
        "Events that came in with a request that was let in, and whose fate is known. Equals "
        "published + spooled + rejected.",
        total,
    )


DERIVED = (received,)
for _make in DERIVED:
    monitoring.derive(_make)
