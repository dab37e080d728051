"""Real servers for tests and benchmarks: where each one comes from, how it starts and stops."""
