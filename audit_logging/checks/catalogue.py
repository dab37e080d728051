"""Every check of the capture tier: its number, what it means, and its cure.

The one table behind the checks' hints and the page docs/checks.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from django.core.checks import CheckMessage, Error, Info, Warning

APP = "audit_logging"

#: When a check runs: with every command, or only with ``check --deploy``, as it asks the disk or
#: the network.
When = Literal["always", "deploy"]

_KINDS: dict[str, type[CheckMessage]] = {"E": Error, "W": Warning, "I": Info}


@dataclass(frozen=True, slots=True)
class Entry:
    """One numbered check.

    :ivar number: ``E001``: an error, which stops commands; ``W…`` a warning; ``I…`` a remark.
    :ivar title: what is wrong, in a few words.
    :ivar meaning: what it leads to.
    :ivar cure: what to do.
    :ivar when: when it runs.
    """

    number: str
    title: str
    meaning: str
    cure: str
    when: When = "always"


CHECKS = (
    Entry(
        "E001",
        "An option has a wrong value, or does not exist",
        "The process does not start with it: nobody would notice a misspelt option.",
        "See docs/configuration.md for the options' names, types and bounds.",
    ),
    Entry(
        "E002",
        "SERVICE_NAME is missing",
        "Events could not be told from those of other services.",
        'Add "SERVICE_NAME": "<your service>" to AUDIT_LOGGING, or set AUDIT_LOGGING_SERVICE_NAME.',
    ),
    Entry(
        "E003",
        "The private key is not there, or cannot be read",
        "Deliveries cannot be signed. They are kept in the worker's spool until the key is there.",
        "AUDIT_LOGGING PRIVATE_KEY_PATH must name a file (or a folder of `<key version>.pem`) that "
        "the process's user can read. Look at the secret's mount and its mode.",
    ),
    Entry(
        "E004",
        "The audit middleware is not installed",
        "The app is in INSTALLED_APPS, but no request is recorded.",
        'Put "audit_logging.middleware.AuditMiddleware" first in MIDDLEWARE; to install the app '
        "without auditing set AUDIT_LOGGING ENABLED to False.",
    ),
    Entry(
        "E005",
        "The middleware is installed, the app is not",
        "Requests are recorded by the settings alone: no flags or rules from admin, no commands, "
        "no checks at start. As checks belong to apps, this one is seen in the log of the process.",
        'Add "audit_logging" to INSTALLED_APPS.',
    ),
    Entry(
        "E006",
        "The middleware is listed more than once",
        "The outer one records the request; the inner one only costs time.",
        'Keep the first "audit_logging.middleware.AuditMiddleware" in MIDDLEWARE and remove the '
        "others.",
    ),
    Entry(
        "E007",
        "The private key is encrypted",
        "Nobody is there to type its password. Deliveries cannot be signed.",
        "Store the key unencrypted where only the service's user can read it: "
        "openssl pkey -in encrypted.pem -out key.pem.",
    ),
    Entry(
        "E008",
        "The key is not an RSA private key in PEM",
        "Deliveries cannot be signed. A public key, a certificate, an EC key or DER will not do.",
        "Make one: openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out key.pem; then "
        "register its public half with the publisher (manage.py audit_key add).",
    ),
    Entry(
        "E009",
        "The private key is too small",
        "The publisher does not take public keys below 2048 bits.",
        "Make a key of 2048 bits or more: openssl genpkey -algorithm RSA -pkeyopt "
        "rsa_keygen_bits:2048 -out key.pem.",
    ),
    Entry(
        "E010",
        "CONSUMER_ID is missing",
        "There is a key to sign with, but a signature needs the id that the key is registered "
        "under. Deliveries are kept in the worker's spool.",
        "Set AUDIT_LOGGING CONSUMER_ID to the id given to manage.py audit_key add --consumer.",
    ),
    Entry(
        "E011",
        "The broker's client library is not installed",
        "The process does not start: nothing could be handed to the broker.",
        "pip install 'django-api-audit[production]' for Redis; amqp comes with Celery. Or leave "
        "AUDIT_LOGGING BROKER_URL empty for the broker in a file.",
    ),
    Entry(
        "E012",
        "DELIVERY is kafka, and the publisher's app is not installed",
        "Workers cannot append to the event log. Deliveries are kept in their spool.",
        "pip install 'django-api-audit[publisher,kafka]' and add \"audit_publisher\" to the "
        "INSTALLED_APPS of the workers' settings; or set AUDIT_LOGGING DELIVERY to celery.",
    ),
    Entry(
        "E013",
        "The buffer cannot hold one body of the largest size",
        "While such a request waits to be sent, all others are dropped (buffer_bytes).",
        "Raise AUDIT_LOGGING BUFFER_BYTES to four times MAX_BODY_BYTES or more, or lower "
        "MAX_BODY_BYTES.",
    ),
    Entry(
        "E014",
        "The spool cannot hold one batch",
        "With the broker or the publisher away, batches are dropped (spool_full).",
        "Raise AUDIT_LOGGING SPOOL_MAX_BYTES well above BATCH_BYTES and MAX_EVENT_BYTES: what "
        "comes in during the longest outage to be survived.",
    ),
    Entry(
        "E015",
        "DATA_DIR lies on a network file system",
        "Spools are SQLite files in WAL mode, which needs memory that all users of the file "
        "share: over a network they can be damaged.",
        "Point AUDIT_LOGGING DATA_DIR to a local disk or a block device.",
        "deploy",
    ),
    Entry(
        "E016",
        "uWSGI runs without threads",
        "The background thread never runs: events stay in memory until the buffer is full, and "
        "are then lost. Seen when checks run inside uWSGI, and in the log of each process.",
        "Start uWSGI with enable-threads = true (or with threads = 2 or more).",
    ),
    Entry(
        "E017",
        "Everything is excluded",
        'EXCLUDE_PATHS holds "/", and each path is excluded with all below it.',
        'Remove "/" from AUDIT_LOGGING EXCLUDE_PATHS; to switch the audit off set ENABLED to '
        "False.",
    ),
    Entry(
        "E018",
        "The key of fingerprints cannot be used",
        "It is not there, cannot be read, or holds fewer than 16 bytes. Events do not tell which "
        "token a caller came with.",
        "AUDIT_LOGGING FINGERPRINT_KEY_PATH must name a file that the process's user can read: "
        "openssl rand -hex 32 > fingerprint.key. Or leave it empty.",
    ),
    Entry(
        "E019",
        "Workers can have no number of processes",
        "manage.py audit_worker does not start.",
        "Set AUDIT_LOGGING WORKERS_MAX to WORKERS_MIN or more.",
    ),
    Entry(
        "W001",
        "Deliveries are not signed",
        "A publisher that enforces signatures refuses them; one that does not believes anybody.",
        "Set AUDIT_LOGGING PRIVATE_KEY_PATH and CONSUMER_ID, and register the public key with the "
        "publisher (manage.py audit_key add).",
    ),
    Entry(
        "W002",
        "DATA_DIR cannot be written",
        "Events that overflow, or that the broker does not take, are dropped (spool_unavailable). "
        "With the broker in a file nothing is delivered at all.",
        "Give the service's user write access, or set AUDIT_LOGGING_DATA_DIR.",
        "deploy",
    ),
    Entry(
        "W003",
        "The middleware is not the first",
        "What stands before it answers some requests by itself (redirects, refusals, cached "
        "answers): those are not recorded. What it does to other answers is not recorded either.",
        'Move "audit_logging.middleware.AuditMiddleware" to the top of MIDDLEWARE. Only what '
        "compresses, traces or measures may stand before it.",
    ),
    Entry(
        "W004",
        "SERVICE_NAME looks like a placeholder",
        "Two services with the same name cannot be told apart in the lake, for seven years.",
        "Set AUDIT_LOGGING SERVICE_NAME to the name by which people know this service.",
    ),
    Entry(
        "W005",
        "A key can be read by everybody on the host",
        "Whoever copies the private key can deliver events in this service's name; whoever copies "
        "the key of fingerprints can try out tokens.",
        "chmod 600 the file, or mount the secret with a defaultMode of 0400 or 0440.",
    ),
    Entry(
        "W006",
        "Deliveries go over plain HTTP",
        "The signature does not cover the body: on the way events can be read and changed.",
        "Give AUDIT_LOGGING PUBLISHER_URL an https:// address; to accept it within a mesh that "
        'encrypts by itself, add "audit_logging.W006" to SILENCED_SYSTEM_CHECKS.',
        "deploy",
    ),
    Entry(
        "W007",
        "PUBLISHER_URL is not set",
        "Deliveries go to this host, where a publisher runs in development only.",
        "Set AUDIT_LOGGING PUBLISHER_URL to the publisher's address.",
        "deploy",
    ),
    Entry(
        "W008",
        "The broker does not answer",
        "Events go to the local spool until it does.",
        "Look at AUDIT_LOGGING BROKER_URL (host, port, password, TLS) and at the network between; "
        "tried for two seconds.",
        "deploy",
    ),
    Entry(
        "W009",
        "The broker is memory",
        "Batches stay in the process that made them: no worker ever sees them.",
        "Use memory:// in tests alone. Leave AUDIT_LOGGING BROKER_URL empty for the broker in a "
        "file, or name Redis or RabbitMQ.",
    ),
    Entry(
        "W010",
        "DATA_DIR lies in memory",
        "On tmpfs the spools and dead letters are gone with the next restart of the host, and "
        "count as its memory.",
        "Point AUDIT_LOGGING DATA_DIR to a disk.",
        "deploy",
    ),
    Entry(
        "W011",
        "DATA_DIR lies in the container's own layer",
        "The spools and dead letters are gone when the container is replaced.",
        "Mount a volume and point AUDIT_LOGGING DATA_DIR to it.",
        "deploy",
    ),
    Entry(
        "W012",
        "The disk of DATA_DIR is nearly full",
        "The spool cannot grow to its bound: in an outage events are dropped (spool_unavailable) "
        "before it is reached.",
        "Make room, or lower AUDIT_LOGGING SPOOL_MAX_BYTES to what there is.",
        "deploy",
    ),
    Entry(
        "W013",
        "DATA_DIR is used by another service too",
        "Both share one bound, one queue and one set of dead letters; each sends the other's "
        "events, signed with its own key, which the publisher may refuse.",
        "Give each service a folder of its own: AUDIT_LOGGING DATA_DIR. The web processes and the "
        "workers of one service do share it.",
        "deploy",
    ),
    Entry(
        "W014",
        "DATA_DIR is not private",
        "Spools hold what callers sent. Whoever can write the folder can also replace its files.",
        "chmod 700 the folder and 600 the files in it, owned by the service's user.",
        "deploy",
    ),
    Entry(
        "W015",
        "A batch cannot hold the largest event",
        "Such an event travels in a message of its own that passes BATCH_BYTES: the broker may "
        "not take it.",
        "Raise AUDIT_LOGGING BATCH_BYTES to MAX_EVENT_BYTES or more.",
    ),
    Entry(
        "W016",
        "Bodies may be larger than events",
        "Bodies between MAX_EVENT_BYTES and MAX_BODY_BYTES are kept in memory and parsed, and then "
        "left out.",
        "Lower AUDIT_LOGGING MAX_BODY_BYTES, or raise MAX_EVENT_BYTES here and at the publisher.",
    ),
    Entry(
        "W017",
        "Events are dropped, and the buffer is tiny",
        "With OVERFLOW=drop the buffer alone takes up bursts: a second of a busy process is lost "
        "(buffer_full).",
        "Raise AUDIT_LOGGING BUFFER_SIZE to 100 or more, or set OVERFLOW to spool.",
    ),
    Entry(
        "W018",
        "A stopping process has no time to empty its buffer",
        "Half of SHUTDOWN_SECONDS is for the broker, the rest for the spool. When the broker does "
        "not answer within BROKER_TIMEOUT, there is no rest: events are lost (shutdown).",
        "Set AUDIT_LOGGING SHUTDOWN_SECONDS to twice BROKER_TIMEOUT or more.",
    ),
    Entry(
        "W019",
        "Nothing is recorded",
        "LEVEL is none or SAMPLE_RATE is 0, and flags come from the settings alone.",
        "Raise AUDIT_LOGGING LEVEL or SAMPLE_RATE, or set FLAGS_SOURCE to database or publisher.",
    ),
    Entry(
        "W020",
        "The app's tables are not there",
        "FLAGS_SOURCE or DEAD_LETTERS is database. Until the tables are there the settings' flags "
        "are in force, and dead letters wait in their file.",
        "Run manage.py migrate; or set AUDIT_LOGGING FLAGS_SOURCE to publisher or settings, and "
        "DEAD_LETTERS to file.",
        "deploy",
    ),
    Entry(
        "W021",
        "The folder of metrics cannot be used",
        "PROMETHEUS_MULTIPROC_DIR is not a folder that this process can write: metrics are not "
        "exported.",
        "Make the folder before the server starts, empty, for the service's user; or remove the "
        "variable.",
        "deploy",
    ),
    Entry(
        "W022",
        "A check could not be made",
        "It failed itself, and says why. The service is not affected.",
        "Mend what the message names; if it is a bug of ours, report it.",
    ),
    Entry(
        "W023",
        "The publisher does not answer",
        "Deliveries wait in a spool until it does.",
        "Look at AUDIT_LOGGING PUBLISHER_URL (host, port, TLS), at the network between and at the "
        "publisher itself; tried for three seconds.",
        "deploy",
    ),
    Entry(
        "W024",
        "PUBLISHER_URL leads past the publisher",
        "Something answers there, and knows none of the publisher's paths. Deliveries wait in a "
        "spool.",
        "Set AUDIT_LOGGING PUBLISHER_URL to what stands before /v1: mostly scheme, host and port "
        "alone. It may have a path too many, such as /v1 itself, or miss that of a proxy.",
        "deploy",
    ),
    Entry(
        "W025",
        "The publisher does not know this service's key",
        "It refuses the signature. Deliveries wait in a spool until the key is registered.",
        "Register the public key with the publisher under CONSUMER_ID and KEY_VERSION (manage.py "
        "audit_key add); if it is, look at what the message says: a revoked or expired key, "
        "another version, a clock that is wrong.",
        "deploy",
    ),
    Entry(
        "W026",
        "The consumer may not publish for SERVICE_NAME",
        "The key is known, but events of this service are refused from it.",
        "Allow it at the publisher (manage.py audit_key add --service, or the consumer's page in "
        "admin), or correct AUDIT_LOGGING SERVICE_NAME or CONSUMER_ID.",
        "deploy",
    ),
    Entry(
        "W027",
        "Behind uvicorn, the ASGI application is not wrapped",
        "uvicorn, also as gunicorn's worker, ends by its signal: Python's exit handlers never run, "
        "and a graceful stop loses what is in memory. Seen with --deploy where uvicorn is "
        "installed, and in the log of each process that it serves.",
        "In asgi.py: from audit_logging.asgi import audited; application = "
        "audited(get_asgi_application()).",
        "deploy",
    ),
    Entry(
        "W028",
        "uWSGI ends workers without their exit handlers",
        "A worker that is stopped while it is in a request, or that skips exit handlers always, "
        "loses what is in memory (it is named as missing). Seen when checks run inside uWSGI, and "
        "in the log of each process.",
        "Start uWSGI with hook-master-start = unix_signal:15 gracefully_kill_them_all in the place "
        "of die-on-term, and without skip-atexit and skip-atexit-teardown.",
    ),
    Entry(
        "W029",
        "The publisher takes smaller events than this service makes",
        "Events between the two limits are sent twice: whole, and then without their bodies.",
        "Set AUDIT_LOGGING MAX_EVENT_BYTES to the publisher's AUDIT_PUBLISHER_MAX_EVENT_BYTES, or "
        "raise that one.",
        "deploy",
    ),
    Entry(
        "I001",
        "Answers are compressed before they are recorded",
        "GZipMiddleware stands behind the audit: bodies are unpacked again in the background, "
        "which costs about as much as compressing did, and recorded sizes are those of compressed "
        "answers.",
        "Put django.middleware.gzip.GZipMiddleware before the audit middleware to record plain "
        "answers, or leave it to record sizes as the client sees them.",
        "deploy",
    ),
)

_BY_NUMBER = {entry.number: entry for entry in CHECKS}


def found(number: str, message: str, cure: str = "") -> CheckMessage:
    """Return check `number` with what was found, naming the setting.

    :param cure: a better cure than the table's.
    """
    entry = _BY_NUMBER[number]
    return _KINDS[number[0]](message, hint=cure or entry.cure, id=f"{APP}.{number}")
