"""Message signatures (RFC 9421): what must be covered, and whether the signature fits it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote

from audit_logging import message_signatures as messages
from audit_logging import signing

from ..names import OUR_HEADERS, header_key
from ..routing import FORWARDED
from .consumers import KnownConsumer
from .keys import verifies
from .signatures import (
    DIGESTS,
    Proof,
    SignatureRefused,
    check_age,
    key_of,
    received,
    unknown_consumer,
)
from .structured_fields import InnerList, Malformed, byte_sequences, inner_lists

_INPUT = "HTTP_SIGNATURE_INPUT"
_SIGNATURE = "HTTP_SIGNATURE"
_DIGEST = "HTTP_CONTENT_DIGEST"
#: The headers that travel with events, in any spelling that a server leaves of them. The trace is
#: not among them: what relays a request may go on with it.
_TRAVELLING = frozenset(header_key(name) for name in FORWARDED if name != "traceparent")

#: The headers by which a body is read.
_READ_BY = frozenset({"CONTENT_TYPE", "HTTP_CONTENT_ENCODING"})

#: Longest nonce, in characters.
MAX_NONCE = 200
#: Methods whose requests have no body that we read.
BODILESS = frozenset({"GET", "HEAD", "OPTIONS"})


def is_signed(meta: Mapping[str, Any]) -> bool:
    """Whether the request carries a message signature, good or not."""
    return _INPUT in meta


def verify_message(
    meta: Mapping[str, Any],
    consumers: Mapping[str, KnownConsumer],
    now: float,
    scheme: str = "http",
) -> Proof:
    """Return what a request's message signature proves; the body is still to be compared.

    :param meta: WSGI's or ASGI's META.
    :param now: epoch seconds.
    :param scheme: of the URL, as the client has it; only ``@target-uri`` and ``@scheme`` use it.
    :raises SignatureRefused: with the reason.
    """
    consumer_id = received(meta, signing.CONSUMER_ID).strip()
    if not consumer_id:
        raise SignatureRefused("missing", f"{signing.CONSUMER_ID} is missing.", signing.CONSUMER_ID)
    consumer = consumers.get(consumer_id)
    if consumer is None:
        raise unknown_consumer()
    label, signed, version = _pick(_parsed(meta, _INPUT, messages.INPUT), consumer_id)
    signature = _parsed(meta, _SIGNATURE, messages.SIGNATURE).get(label)
    if not isinstance(signature, bytes):
        raise SignatureRefused(
            "missing",
            f"{messages.SIGNATURE} has no bytes with the label {label}.",
            messages.SIGNATURE,
        )
    until = _check_times(signed, now)
    nonce = signed.params.get("nonce")
    if not isinstance(nonce, str) or not 0 < len(nonce) <= MAX_NONCE:
        raise _malformed(
            f"nonce must be a string of 1 to {MAX_NONCE} characters, another for each request"
        )
    algorithm = signed.params.get("alg")
    if algorithm not in messages.ALGORITHMS:
        raise _malformed(f"alg must be {' or '.join(messages.ALGORITHMS)}")
    components = [(name, _value(meta, name, own, scheme)) for name, own in signed.items]
    _check_coverage(meta, {name for name, _ in components})
    digests = _digests(meta) if any(name == "content-digest" for name, _ in components) else None
    key = key_of(consumer, version, now, messages.INPUT)
    base = messages.signature_base(components, signed.text)
    if not verifies(key.public_key, signature, base, algorithm):
        raise SignatureRefused(
            "bad_signature",
            "Signature does not fit the request as it arrived. Sign what is sent, with the private "
            "half of the registered key; a proxy must not rewrite what is covered.",
            messages.SIGNATURE,
        )
    identity = "\n".join(("message", consumer_id, version, nonce)).encode()
    return Proof(consumer, identity, until, digests)


def _malformed(message: str, header: str = messages.INPUT) -> SignatureRefused:
    return SignatureRefused("malformed", f"{header}: {message}.", header)


def _parsed(meta: Mapping[str, Any], name: str, header: str) -> Mapping[str, Any]:
    value = meta.get(name, "")
    if not value.strip():
        raise SignatureRefused("missing", f"{header} is missing.", header)
    try:
        return inner_lists(value) if header == messages.INPUT else byte_sequences(value)
    except Malformed as error:
        raise _malformed(str(error), header) from error


def _pick(inputs: Mapping[str, InnerList], consumer_id: str) -> tuple[str, InnerList, str]:
    """The consumer's own signature among those of the request, and its key's version."""
    found = []
    for label, signed in inputs.items():
        keyid = signed.params.get("keyid")
        # What the header claims tells where the version begins: an id may hold a colon.
        if isinstance(keyid, str) and keyid.startswith(f"{consumer_id}:"):
            found.append((label, signed, keyid[len(consumer_id) + 1 :]))
    if not found:
        raise SignatureRefused(
            "malformed",
            f'{messages.INPUT} has no keyid="<consumer id>:<key version>" for the consumer in '
            f"{signing.CONSUMER_ID}.",
            messages.INPUT,
        )
    if len(found) > 1:
        raise SignatureRefused(
            "duplicate", f"{messages.INPUT} has two signatures of this consumer.", messages.INPUT
        )
    return found[0]


def _check_times(signed: InnerList, now: float) -> float:
    created, expires = signed.params.get("created"), signed.params.get("expires")
    if type(created) is not int:
        raise _malformed("created must be epoch seconds")
    until = check_age(created, now, messages.INPUT)
    if expires is None:
        return until
    if type(expires) is not int:
        raise _malformed("expires must be epoch seconds")
    if now >= expires:
        raise SignatureRefused(
            "expired", f"The signature expired {now - expires:.0f} s ago.", messages.INPUT
        )
    return until


def _check_coverage(meta: Mapping[str, Any], names: set[str]) -> None:
    if "@method" not in names:
        raise _uncovered("@method")
    if not names & {"@target-uri", "@request-target"}:
        if "@path" not in names:
            raise _uncovered("@path (or @target-uri)")
        if meta.get("QUERY_STRING") and "@query" not in names:
            raise _uncovered("@query")
    if "content-digest" not in names and meta.get("REQUEST_METHOD") not in BODILESS:
        raise _uncovered("content-digest")
    covered = {_meta_name(name) for name in names if not name.startswith("@")}
    for name in meta:
        if name in covered or not _must_be_covered(name):
            continue
        # Servers of WSGI make up a type for requests that have none; there is no body to be read.
        if name not in _READ_BY or (meta[name] and meta.get("REQUEST_METHOD") not in BODILESS):
            raise _uncovered(name.removeprefix("HTTP_").replace("_", "-").lower())


@lru_cache(maxsize=512)
def _must_be_covered(name: str) -> bool:
    """Whether a header of META decides what becomes of the request, or travels with its events."""
    return name in _READ_BY or (name.startswith("HTTP_") and header_key(name[5:]) in _TRAVELLING)


def _uncovered(what: str) -> SignatureRefused:
    return SignatureRefused(
        "uncovered",
        f"{messages.INPUT} does not cover {what}. Sign it, too.",
        messages.INPUT,
    )


def _digests(meta: Mapping[str, Any]) -> Mapping[str, bytes]:
    """The digests that a covered Content-Digest names and that we know; one at least."""
    found = _parsed(meta, _DIGEST, messages.DIGEST)
    known = {name: digest for name, digest in found.items() if name in DIGESTS}
    if not known:
        raise _malformed(f"it has none of {', '.join(DIGESTS)}", messages.DIGEST)
    return known


@lru_cache(maxsize=256)
def _meta_name(field: str) -> str:
    # Where the request was looked at first, ours have one spelling, whatever they came in.
    name = OUR_HEADERS.get(header_key(field), field)
    name = name.upper().replace("-", "_")
    return name if name in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{name}"


def _value(meta: Mapping[str, Any], name: str, params: str, scheme: str) -> str:
    """What a component's name stands for in this request."""
    if params:
        raise _malformed(f"the component {name} has parameters, which are not supported")
    if not name.startswith("@"):
        value = meta.get(_meta_name(name))
        if value is None or name != name.lower():
            raise SignatureRefused(
                "missing", f"The header {name} is covered by the signature and missing.", name
            )
        if not value.isascii():
            raise _malformed("its value is not ASCII", name)
        return str(value).strip()
    query = meta.get("QUERY_STRING", "")
    if name == "@method":
        return str(meta.get("REQUEST_METHOD", ""))
    if name == "@path":
        return _path(meta)
    if name == "@query":
        return f"?{query}"
    if name == "@request-target":
        return _path(meta) + (f"?{query}" if query else "")
    host = str(meta.get("HTTP_HOST", "")).strip().lower()
    host = host.removesuffix(":443" if scheme == "https" else ":80")
    if name == "@authority":
        return host
    if name == "@scheme":
        return scheme
    if name == "@target-uri":
        return f"{scheme}://{host}{_path(meta)}" + (f"?{query}" if query else "")
    raise _malformed(f"the component {name} is not supported")


def _path(meta: Mapping[str, Any]) -> str:
    """The path as it was sent, if the server tells; it must be the one that is acted upon."""
    acted = str(meta.get("SCRIPT_NAME", "")) + str(meta.get("PATH_INFO", "/"))
    raw = str(meta.get("RAW_URI") or meta.get("REQUEST_URI") or "").partition("?")[0]
    if raw == acted or (raw.startswith("/") and unquote(raw) == acted):
        return raw
    # It came decoded; so it is, of nearly every client, as it was sent.
    return quote(acted, safe="/:;!@&=+$,~*'()-_.")
