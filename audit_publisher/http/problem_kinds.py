"""Every reason for which the publisher refuses a request: its code, its cause and its cure.

The documents, the OpenAPI document, the page for people and docs/api.md are made from this list.
It needs no Django, so that the server can say what is wrong before the application is reached.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

#: Where problems are explained; a problem's `type` is this and its code.
PAGE = "/v1/docs"


@dataclass(frozen=True, slots=True)
class Kind:
    """One reason.

    :ivar code: stable, for machines; clients may decide by it.
    :ivar cause: what happened.
    :ivar cure: what to do about it, and who.
    :ivar retryable: whether the same request, sent again, may succeed.
    """

    code: str
    status: int
    title: str
    cause: str
    cure: str
    retryable: bool = False

    @property
    def type(self) -> str:
        """The problem's type: a URI reference that leads to its explanation."""
        return f"{PAGE}#{self.code}"


_CLOCK = "Set the sender's clock (NTP), and sign each request when it is sent."
_KEYS = "Register it: manage.py audit_key add, or Consumers in the admin."

_KINDS = (
    Kind(
        "malformed-request",
        400,
        "The request is not HTTP",
        "The request line or a header is not what HTTP allows, or two headers contradict each "
        "other.",
        "Look at what the client's HTTP library, or a proxy before us, sends.",
    ),
    Kind(
        "bad-request",
        400,
        "The request cannot be used",
        "Something about the request is not acceptable; `detail` says what.",
        "Change the request.",
    ),
    Kind(
        "unknown-host",
        400,
        "The Host header is not known",
        "The Host header names no host that this publisher answers for.",
        "Use the publisher's own name, or add the name to AUDIT_ALLOWED_HOSTS.",
    ),
    Kind(
        "not-json",
        400,
        "The body is not JSON",
        "The body is not JSON in UTF-8, or a batch is not an array. NaN, Infinity, lone "
        "surrogates, a byte order mark and trailing commas are not JSON.",
        "Correct what makes the body. Several events go to the batch operation.",
    ),
    Kind(
        "not-gzip",
        400,
        "The body is not gzip",
        "Content-Encoding says gzip, and the body is something else or is damaged.",
        "Compress the whole body, or leave Content-Encoding out.",
    ),
    Kind(
        "bad-transfer",
        400,
        "The body's transfer encoding is damaged",
        "The chunks of a chunked body are none.",
        "Send Content-Length, or look at the proxy that makes the chunks.",
    ),
    Kind(
        "body-incomplete",
        400,
        "The body was cut short",
        "The connection ended before the whole body was there.",
        "Send it again.",
        retryable=True,
    ),
    Kind(
        "ambiguous-header",
        400,
        "A header was sent more than once",
        "The header that `error` names came twice: in one spelling, in two (WM_SITE_ID and "
        "WM-SITE-ID), or merged by a proxy. Nobody can say which value is meant.",
        "Send it once.",
    ),
    Kind(
        "signature-refused",
        401,
        "The signature is not good",
        "The signature, or what belongs to it, is not acceptable; `detail` says why.",
        "See the other signature problems.",
    ),
    Kind(
        "signature-missing",
        401,
        "The request is not signed",
        "One of the four signature headers is missing, and this consumer's rule is `enforce`.",
        "Sign the request. A proxy may have dropped them: nginx does that to names with dots or "
        "underscores without `ignore_invalid_headers off`. WM-CONSUMER-ID and so on will do, too.",
    ),
    Kind(
        "signature-malformed",
        401,
        "A signature header cannot be used",
        "It is not ASCII, is too long, or is not what it should be (epoch milliseconds).",
        "Send what the signing recipe says.",
    ),
    Kind(
        "signature-duplicate",
        401,
        "A signature header was sent more than once",
        "It came twice, or a proxy merged two into one with a comma.",
        "Send it once, in one spelling.",
    ),
    Kind(
        "signature-unknown-consumer",
        401,
        "The consumer is not registered",
        "Nobody registered the id in WM-CONSUMER.ID.",
        _KEYS,
    ),
    Kind(
        "signature-inactive",
        401,
        "The consumer is switched off",
        "An operator switched this consumer off.",
        "Ask the operator; Consumers in the admin.",
    ),
    Kind(
        "signature-unknown-key",
        401,
        "The key version is not registered",
        "The consumer has no key of the version in WM-SEC.KEY-VERSION.",
        _KEYS,
    ),
    Kind(
        "signature-key-revoked",
        401,
        "The key is revoked",
        "An operator revoked this key.",
        "Sign with another key, and have its public half registered.",
    ),
    Kind(
        "signature-key-not-yet-valid",
        401,
        "The key is not valid yet",
        "The key's first day of validity lies ahead.",
        "Sign with the older key until then, or correct the date in the admin.",
    ),
    Kind(
        "signature-key-expired",
        401,
        "The key is no longer valid",
        "The key's last day of validity has passed.",
        "Sign with the newer key.",
    ),
    Kind(
        "signature-expired",
        401,
        "The signature is too old",
        "It was made longer ago than SIGNATURE_MAX_AGE.",
        _CLOCK,
    ),
    Kind(
        "signature-future",
        401,
        "The signature is from the future",
        "The signer's clock is ahead of ours by more than SIGNATURE_FUTURE_SKEW.",
        _CLOCK,
    ),
    Kind(
        "signature-bad-signature",
        401,
        "The signature does not fit its headers",
        "The signature was made with another key, or over other values.",
        "Sign the exact header values with the private half of the registered key.",
    ),
    Kind(
        "signature-uncovered",
        401,
        "The signature covers too little",
        "Signature-Input leaves out what a message signature has to cover; `detail` names it.",
        "Cover @method, @path (and @query, where there is one), content-digest, the consumer id "
        "and, where it is sent, the site id.",
    ),
    Kind(
        "signature-bad-digest",
        401,
        "The body is not the one that was signed",
        "Content-Digest does not fit the body as it arrived. Nothing of it was used.",
        "Digest the bytes that are sent, after compression. A proxy must not change them.",
    ),
    Kind(
        "signature-weak-scheme",
        401,
        "The legacy signature is not enough",
        "This consumer signs messages (RFC 9421); nothing else is accepted in its name.",
        "Sign messages (AUDIT_LOGGING_SIGNATURE_SCHEME), or accept both in its admin page.",
    ),
    Kind(
        "signature-replayed",
        401,
        "The request was taken already",
        "The very same signed request was answered with a 2xx before.",
        "Nothing is to be sent again. To send it anyway, sign it anew.",
    ),
    Kind(
        "forbidden",
        403,
        "The sender may not do this",
        "The consumer may not read this service's flags, or the page is for staff users.",
        "Add the service to the consumer in the admin.",
    ),
    Kind("not-found", 404, "There is no such path", "The path is not one of ours.", "Correct it."),
    Kind(
        "method-not-allowed",
        405,
        "The method is not allowed here",
        "The path has no such method; the header Allow names those that it has.",
        "Use one of those.",
    ),
    Kind(
        "body-too-slow",
        408,
        "The body did not arrive in time",
        "The body took longer than GUNICORN_READ_TIMEOUT.",
        "Send it again; send less at once over slow connections.",
        retryable=True,
    ),
    Kind(
        "in-progress",
        409,
        "The request is being taken",
        "The very same signed request came before, and is not answered yet; or whoever took it was "
        "killed, and its claim lapses within a minute.",
        "Send it again after Retry-After, or sign it anew.",
        retryable=True,
    ),
    Kind(
        "too-large",
        413,
        "It is too large",
        "The body, or one event, is larger than MAX_EVENT_BYTES or MAX_BATCH_BYTES allow, before "
        "or after decompression; or the event log does not take such a record.",
        "Send smaller bodies: lower the capture's MAX_BODY_BYTES, or raise the limit here.",
    ),
    Kind(
        "too-many-events",
        413,
        "There are too many events in the batch",
        "The batch has more events than MAX_BATCH_EVENTS allows.",
        "Split it.",
    ),
    Kind(
        "uri-too-long",
        414,
        "The request line is too long",
        "The path is longer than 4,094 bytes.",
        "Shorten it.",
    ),
    Kind(
        "unsupported-media-type",
        415,
        "The content type is not taken",
        "Content-Type is not application/json (a batch: or application/x-ndjson), or names "
        "another charset than UTF-8.",
        "Send JSON in UTF-8, and say so.",
    ),
    Kind(
        "unsupported-encoding",
        415,
        "The content encoding is not taken",
        "Content-Encoding is neither gzip nor identity.",
        "Send gzip, or nothing.",
    ),
    Kind(
        "expectation-failed",
        417,
        "The expectation cannot be met",
        "Expect holds something other than 100-continue.",
        "Leave the header out.",
    ),
    Kind(
        "invalid-event",
        422,
        "The event breaks the contract",
        "The field that `error` names is missing, has the wrong type, or a value that is not "
        "allowed.",
        "Correct the field. What was refused once is refused again.",
    ),
    Kind(
        "odd-time",
        422,
        "The event's time is too far away",
        "`request_ts` is longer ago than MAX_EVENT_AGE_DAYS, or further ahead than "
        "MAX_EVENT_AHEAD_DAYS.",
        "Set the clock of whoever made the event, or change the option.",
    ),
    Kind(
        "service-not-allowed",
        422,
        "The sender may not publish for this service",
        "The consumer has a list of services in the admin, and this one is not in it.",
        "Correct `service_name`, or add the service to the consumer.",
    ),
    Kind(
        "caller-not-allowed",
        422,
        "The sender's events may not name this consumer",
        "The event says that another consumer called than the sender may name: by default itself.",
        "Leave `consumer_id` out, or add the id, or * for every one, to the consumer in the admin.",
    ),
    Kind(
        "invalid-header",
        422,
        "A header's value cannot be used",
        "The forwarded header that `error` names is not UTF-8, holds a control character, or is "
        "longer than 256 bytes.",
        "Correct its value, or leave the header out.",
    ),
    Kind(
        "too-busy",
        429,
        "Too much is waiting to be stored",
        "The publisher takes in more than it can make durable.",
        "Send it again after Retry-After. Operators: add publishers, or look at the event log.",
        retryable=True,
    ),
    Kind(
        "headers-too-large",
        431,
        "The headers are too large",
        "One header is larger than 8,190 bytes, there are more than 100, or all together have more "
        "than 32 KB.",
        "Send fewer or shorter headers.",
    ),
    Kind(
        "internal-error",
        500,
        "The publisher failed",
        "A fault of the publisher's own; nothing was promised.",
        "Send it again after Retry-After. Operators: the log holds the reason.",
        retryable=True,
    ),
    Kind(
        "not-implemented",
        501,
        "The transfer encoding is not known",
        "Transfer-Encoding is neither chunked nor identity.",
        "Send Content-Length, or chunks.",
    ),
    Kind(
        "no-storage",
        503,
        "No durable place takes events",
        "No region of the event log takes the event, and the spool is full or cannot be written.",
        "Send it again after Retry-After. Operators: /health/ready names what is wrong.",
        retryable=True,
    ),
    Kind(
        "schema-unknown",
        503,
        "The schema's id is not known",
        "The schema registry has not answered even once since this publisher was installed.",
        "Send it again after Retry-After. Operators: see AUDIT_PUBLISHER_REGISTRY_URL.",
        retryable=True,
    ),
    Kind(
        "not-ready",
        503,
        "The publisher cannot answer this now",
        "Django's database could not be read yet: consumers, public keys, topic routes or flags "
        "are not known.",
        "Send it again after Retry-After. Operators: look at the database.",
        retryable=True,
    ),
)

#: Every kind by its code.
KINDS = {kind.code: kind for kind in _KINDS}

#: The kind of a status for which nobody said more.
_PLAIN = {
    400: "bad-request",
    401: "signature-refused",
    403: "forbidden",
    404: "not-found",
    405: "method-not-allowed",
    408: "body-too-slow",
    413: "too-large",
    414: "uri-too-long",
    415: "unsupported-media-type",
    417: "expectation-failed",
    422: "invalid-event",
    429: "too-busy",
    431: "headers-too-large",
    500: "internal-error",
    501: "not-implemented",
    503: "not-ready",
}


def kind_of(status: int, code: str = "", reason: str = "") -> Kind:
    """The kind of a problem.

    :param code: its code, if it is known.
    :param reason: a metric's label, from which codes of signature problems are made.
    """
    for candidate in (code, f"signature-{reason}".replace("_", "-") if status == 401 else ""):
        if candidate in KINDS:
            return KINDS[candidate]
    return KINDS[_PLAIN.get(status, "bad-request" if status < 500 else "internal-error")]


def document(
    kind: Kind,
    detail: str,
    *,
    status: int | None = None,
    retryable: bool | None = None,
    field: str | None = None,
    header: str | None = None,
) -> dict[str, Any]:
    """A problem as its JSON document (RFC 9457).

    :param field: the body's field at fault; "" is the body as a whole.
    :param header: the request header at fault.
    """
    body: dict[str, Any] = {
        "type": kind.type,
        "title": kind.title,
        "status": kind.status if status is None else status,
        "code": kind.code,
        "detail": detail,
        "retryable": kind.retryable if retryable is None else retryable,
    }
    if header is not None:
        body["error"] = {"header": header, "reason": detail}
    elif field is not None:
        body["error"] = {"field": field, "reason": detail}
    return body
