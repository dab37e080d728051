"""The runnable project: the embedded system by default, production by environment variables."""
