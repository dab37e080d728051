"""Event log to files: read a range, claim it, decode, write, mark done."""
