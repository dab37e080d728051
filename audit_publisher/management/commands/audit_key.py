"""`manage.py audit_key`: register, list and revoke consumers' public keys."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction

from audit_logging import changes
from audit_publisher.models import Consumer, ConsumerKey


class Command(BaseCommand):
    """Manages public keys."""

    help = (
        "Register, list and revoke the public keys that signatures are verified with. Example: "
        "audit_key add --consumer 8f1f4b66 --key-version 1 --public-key inventory.pub.pem "
        "--name 'Inventory API' --service inventory-api --caller '*'"
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare add, list and revoke."""
        actions = parser.add_subparsers(dest="action", required=True, metavar="add|list|revoke")

        add = actions.add_parser("add", help="Register a consumer's public key from a PEM file.")
        add.add_argument("--consumer", required=True, help="Consumer id, as in WM_CONSUMER.ID.")
        add.add_argument("--key-version", default="1", help="As in WM_SEC.KEY_VERSION (1).")
        add.add_argument(
            "--public-key",
            required=True,
            type=Path,
            help="PEM file: openssl pkey -in private.pem -pubout -out public.pem",
        )
        add.add_argument("--name", help="Who this is, for people.")
        add.add_argument(
            "--service",
            action="append",
            default=[],
            help="A service it may publish for, added to those it has; repeat for several. "
            "'shop-*': all that begin with shop-; '*': every one. Without any it may publish for "
            "none.",
        )
        add.add_argument(
            "--caller",
            action="append",
            default=[],
            help="A consumer id that its events may name as their caller, added to those it has; "
            "'*': every one, as a service needs that records who calls it. Without any: its own.",
        )
        add.add_argument(
            "--schemes",
            choices=Consumer.Schemes.values,
            help="How it may sign: any (the legacy signature, or message signatures), or message "
            "(message signatures only).",
        )
        add.add_argument(
            "--signature",
            choices=Consumer.Enforcement.values,
            help="What a request of it without a good signature gets.",
        )
        add.add_argument(
            "--replay",
            choices=Consumer.Replay.values,
            help="What a request of it gets that was taken before.",
        )
        add.add_argument("--not-before", help="ISO 8601 time; not valid earlier. '': no bound.")
        add.add_argument("--not-after", help="ISO 8601 time; not valid later. '': no bound.")
        add.add_argument(
            "--replace", action="store_true", help="Replace another key of the same version."
        )
        add.add_argument(
            "--reinstate", action="store_true", help="Take a revoked key into use again."
        )

        shown = actions.add_parser("list", help="Show consumers and their keys.")
        shown.add_argument("--consumer", help="Only this one.")

        revoke = actions.add_parser("revoke", help="Refuse a key from now on.")
        revoke.add_argument("--consumer", required=True, help="Consumer id.")
        revoke.add_argument("--key-version", required=True, help="Version of the key.")

        for action in (add, revoke):
            action.add_argument("--reason", default="", help="Kept in the trail of changes.")
        for action in (add, shown, revoke):
            action.add_argument("--json", action="store_true", help="Print JSON.")

    def handle(self, *args: Any, **options: Any) -> None:
        """Do what was asked."""
        with changes.because(options.get("reason", "")):
            keys = getattr(self, f"_{options['action']}")(options)
        rows = [_row(key) for key in keys]
        if options["json"]:
            self.stdout.write(json.dumps(rows, indent=2))
            return
        for row in rows:
            self.stdout.write(
                f"{row['consumer']}  version {row['key_version']}  {row['state']}  "
                f"{row['fingerprint'][:16]}…  services: {', '.join(row['services']) or 'none'}"
            )
        if not rows:
            self.stdout.write("No keys. Register one with: audit_key add --help")

    def _add(self, options: dict[str, Any]) -> list[ConsumerKey]:
        try:
            pem = options["public_key"].read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise CommandError(f"--public-key: {error}") from error
        with transaction.atomic():
            consumer = Consumer.objects.filter(consumer_id=options["consumer"]).first()
            consumer = consumer or Consumer(consumer_id=options["consumer"])
            if options["name"] is not None:
                consumer.name = options["name"]
            consumer.service_names = _added(consumer.service_names, options["service"])
            consumer.caller_ids = _added(consumer.caller_ids, options["caller"])
            for field, option in (
                ("schemes", "schemes"),
                ("enforcement", "signature"),
                ("replay", "replay"),
            ):
                if options[option] is not None:
                    setattr(consumer, field, options[option])
            _save(consumer)
            key = consumer.keys.filter(key_version=options["key_version"]).first()
            pem = pem.strip() + "\n"
            if key is not None and key.public_key != pem and not options["replace"]:
                raise CommandError(
                    f"{consumer} has another key of version {key.key_version}. Use a new "
                    "--key-version (both are valid until you revoke one), or --replace."
                )
            if key is not None and key.revoked and not options["reinstate"]:
                raise CommandError(
                    f"{consumer}: the key of version {key.key_version} is revoked. Register a new "
                    "one with another --key-version; or, if the revoked one may be trusted, add "
                    "--reinstate."
                )
            key = key or ConsumerKey(consumer=consumer, key_version=options["key_version"])
            key.public_key, key.revoked = pem, False
            for field, option in (("not_before", "--not-before"), ("not_after", "--not-after")):
                if options[field] is not None:
                    setattr(key, field, _time(options[field], option))
            _save(key)
        return [key]

    def _list(self, options: dict[str, Any]) -> list[ConsumerKey]:
        keys = ConsumerKey.objects.select_related("consumer")
        if options["consumer"]:
            keys = keys.filter(consumer__consumer_id=options["consumer"])
        return list(keys)

    def _revoke(self, options: dict[str, Any]) -> list[ConsumerKey]:
        keys = list(
            ConsumerKey.objects.filter(
                consumer__consumer_id=options["consumer"], key_version=options["key_version"]
            ).select_related("consumer")
        )
        if not keys:
            raise CommandError("There is no such key. See: audit_key list")
        for key in keys:
            key.revoked = True
            key.save()
        return keys


def _added(text: str, names: list[str]) -> str:
    return "\n".join(name for name in dict.fromkeys([*text.splitlines(), *names]) if name.strip())


def _save(instance: Consumer | ConsumerKey) -> None:
    try:
        instance.full_clean()
    except ValidationError as error:
        raise CommandError("; ".join(error.messages)) from error
    instance.save()


def _time(text: str, option: str) -> datetime | None:
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise CommandError(f"{option}: {text!r} is not a time like 2027-01-31T00:00Z") from error
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _names(text: str) -> list[str]:
    return sorted(name.strip() for name in text.splitlines() if name.strip())


def _row(key: ConsumerKey) -> dict[str, Any]:
    return {
        "consumer": key.consumer.consumer_id,
        "name": key.consumer.name,
        "key_version": key.key_version,
        "state": key.state,
        "fingerprint": key.fingerprint,
        "services": _names(key.consumer.service_names),
        "callers": _names(key.consumer.caller_ids),
        "schemes": key.consumer.schemes,
        "signature": key.consumer.enforcement,
        "replay": key.consumer.replay,
        "not_before": key.not_before.isoformat() if key.not_before else None,
        "not_after": key.not_after.isoformat() if key.not_after else None,
    }
