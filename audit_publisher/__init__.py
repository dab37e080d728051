"""The publisher: verify, validate, encode and append audit events to a durable event log."""
