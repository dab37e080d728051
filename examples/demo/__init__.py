"""`python -m examples.demo`: the whole journey on one machine, from requests to rows."""
