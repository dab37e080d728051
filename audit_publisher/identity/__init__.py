"""Who sends a request, and whether it can be proved: keys, both kinds of signature, replays."""
