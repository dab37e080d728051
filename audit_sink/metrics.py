"""Every metric of the sink: what it means, and what to do when it is bad."""

from prometheus_client import Counter, Gauge, Histogram

LANE = ("sink", "region", "topic", "partition")

RECORDS_READ = Counter(
    "audit_sink_records_read_total",
    "Records of finished batches, of whatever site. Not growing while the log does: no worker "
    "runs the sink's tasks, or beat is down.",
    LANE,
)
ROWS_STORED = Counter(
    "audit_sink_rows_stored_total",
    "Rows in finished files. Not growing while records are read: look at dead letters and at the "
    "site's id.",
    ("site",),
)
BYTES_STORED = Counter(
    "audit_sink_bytes_stored_total", "Bytes of finished files. For capacity planning.", ("site",)
)
FILES_STORED = Counter(
    "audit_sink_files_stored_total",
    "Finished files. Many small ones: raise FLUSH_SECONDS.",
    ("site",),
)
DUPLICATES = Counter(
    "audit_sink_duplicates_total",
    "Records whose request_id was stored before, and which were therefore left out. Expected "
    "after a failover, a redelivery or a replay.",
    ("site",),
)
DEAD_LETTERS = Counter(
    "audit_sink_dead_letters_total",
    "Records sent to the dead-letter topic, by reason: site (no site owns it: add the site or "
    "correct its id), framing, schema, avro, value (fix the producer, then redrive).",
    ("sink", "reason"),
)
PRODUCER_RECORDS = Counter(
    "audit_sink_producer_records_total",
    "Records by which capture processes say how many events they have numbered; they go to the "
    "ledger, not to the lake. None while rows are stored: audit_verify cannot name what is lost.",
    ("sink",),
)
LOST = Counter(
    "audit_sink_lost_offsets_total",
    "Offsets that the log's retention took before they were stored, and that an admin accepted as "
    "lost. Make the log's retention longer; look for the records in the other region.",
    LANE,
)
FAILURES = Counter(
    "audit_sink_failures_total",
    "Tries of a range that failed, by class of error; the same range is tried again. See the "
    "site's last error in admin.",
    ("sink", "error"),
)
LAG = Gauge(
    "audit_sink_lag_records",
    "Records of the log that the lane has not finished. Growing: add workers, or look at the "
    "site's last error.",
    LANE,
    multiprocess_mode="mostrecent",
)
STALLED = Gauge(
    "audit_sink_lane_stalled",
    "1 while a lane has failed RETRIES times in a row. Its records wait in the event log, whose "
    "retention goes on; fix what the site's last error says, then resume the site in admin.",
    LANE,
    multiprocess_mode="mostrecent",
)
BATCH_SECONDS = Histogram(
    "audit_sink_batch_seconds",
    "Time from claim to ledger of one batch.",
    ("sink",),
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
CLAIMS_TAKEN_OVER = Counter(
    "audit_sink_claims_taken_over_total",
    "Unfinished ranges of another worker that were redone. Growing without restarts: workers are "
    "being killed, often for memory.",
    ("sink",),
)
