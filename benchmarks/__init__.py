"""Every figure that the docs claim, as a command: `python -m benchmarks.<name>`."""
