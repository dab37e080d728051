"""Carrying requests: bodies, bounds, the server's worker, refusals, and the contract in words."""
