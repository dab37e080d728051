"""`python -m benchmarks.peers.bare`: the floor: consume, decode, Parquet; no guarantee whatsoever.

No site filter, no duplicates removed, no partitions, no ledger, no claim, nothing synced: a file
for each 20,000 events. It prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path


def main() -> None:
    """Read a topic to its end, into a folder."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.bare", description=__doc__)
    parser.add_argument("servers")
    parser.add_argument("topic")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--events", type=int, required=True)
    parser.add_argument("--partitions", type=int, required=True)
    parser.add_argument("--schema", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=20_000)
    arguments = parser.parse_args()
    import pyarrow as pa
    import pyarrow.parquet as pq
    import pyruhvro
    from confluent_kafka import Consumer, TopicPartition

    schema = arguments.schema.read_text()
    ready, before = time.monotonic(), _cpu()
    consumer = Consumer(
        {
            "bootstrap.servers": arguments.servers,
            "group.id": "bare",
            "enable.auto.commit": False,
            "queued.max.messages.kbytes": 64 << 10,
        }
    )
    consumer.assign(
        [TopicPartition(arguments.topic, number, 0) for number in range(arguments.partitions)]
    )
    done = size = files = 0
    waiting: list[bytes] = []
    while done < arguments.events:
        waiting += [message.value()[5:] for message in consumer.consume(5000, 0.2)]
        if len(waiting) >= arguments.batch or done + len(waiting) >= arguments.events:
            table = pa.Table.from_batches([pyruhvro.deserialize_array(waiting, schema)])
            path = arguments.folder / f"{files}.parquet"
            pq.write_table(table, path, compression="zstd", compression_level=3)
            done, files, size = done + len(waiting), files + 1, size + path.stat().st_size
            waiting = []
    found = {
        "events": done,
        "files": files,
        "bytes": size,
        "cpu": _cpu() - before,
        "wall": time.monotonic() - ready,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
    }
    consumer.close()
    print(json.dumps(found))


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
