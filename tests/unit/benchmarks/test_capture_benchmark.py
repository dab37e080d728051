"""The benchmark of the capture tier says what was measured, and leaves nobody out."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree

import pytest

from audit_logging.batch import pack
from audit_logging.spool import DurableQueue, Record
from benchmarks.capture import contenders, kept, peers, plot, report
from benchmarks.capture.conductor import Figure, quantile
from benchmarks.capture.latency import Added
from benchmarks.capture.service import Spec, document


def _added(who: contenders.Contender, micros: float) -> Added:
    def figure(scale: float) -> Figure:
        return Figure.of([micros * 1000 * scale * share for share in (0.9, 1.0, 1.1)])

    return Added(
        who.name, who.bodies, "sync", True, *map(figure, (1, 3, 1, 1, 1)), figure(10), figure(20)
    )


def _found() -> list[Added]:
    return [_added(who, 20.0 * 3**number) for number, who in enumerate(contenders.ALL)]


def test_the_picture_has_every_contender_and_is_well_formed() -> None:
    root = ElementTree.fromstring(plot.draw(_found()))  # noqa: S314 - ours
    texts = [node.text or "" for node in root.iter("{http://www.w3.org/2000/svg}text")]
    for who in contenders.ALL:
        assert any(text.startswith(who.name) for text in texts), who.name


def test_what_is_not_slower_at_all_still_has_a_place_in_the_picture() -> None:
    ElementTree.fromstring(plot.draw([_added(contenders.OURS, -5.0)]))  # noqa: S314 - ours


def test_the_table_tells_who_records_no_bodies(capsys: pytest.CaptureFixture[str]) -> None:
    report.show("peers", _found())
    rows = capsys.readouterr().out.splitlines()
    told = {who.name: next(row for row in rows if f"| {who.name}" in row) for who in contenders.ALL}
    assert ["(no bodies)" in told[who.name] for who in contenders.ALL] == [
        not who.bodies for who in contenders.ALL
    ]
    assert "+20 (+19 to +21)" in told[contenders.OURS.name]


def test_every_peer_is_pinned() -> None:
    assert {who.name for who in contenders.PEERS} <= peers.versions().keys()


@pytest.mark.parametrize("size", [2000, 400_000])
def test_a_document_is_of_the_size_asked_for(size: int) -> None:
    assert size <= len(json.dumps(document(size))) < size + 300


def test_a_spec_survives_the_environment() -> None:
    spec = Spec("django-silk", True, "/x", "async", False, {"a": 1}, {"b": 2}, 5)
    assert Spec.load(spec.dump()) == spec


def test_quantiles_are_of_what_was_measured() -> None:
    values = list(range(1000, 0, -1))
    assert (quantile(values, 0.5), quantile(values, 0.99), quantile(values, 1.0)) == (
        501,
        991,
        1000,
    )


def test_what_became_of_events_is_read_from_broker_and_spool(tmp_path) -> None:
    from audit_logging.celery import DELIVER, make_app

    app = make_app()
    app.conf.broker_url = f"durable://{tmp_path}/broker.sqlite3"
    app.send_task(DELIVER, args=("a batch", 7), queue="audit_logging", ignore_result=True)
    spool = DurableQueue(tmp_path / "below" / "capture-spool.sqlite3")
    spool.append("capture", [Record(pack(["{}"]), headers=(("events", b"5"),))])
    spool.close()
    assert kept.events(tmp_path) == (7, 5)
