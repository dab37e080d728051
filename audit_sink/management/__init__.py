"""Commands of the sink."""
