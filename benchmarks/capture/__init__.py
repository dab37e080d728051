"""What capturing costs the service that is audited: time, CPU, throughput, memory, in fair weather
and foul, side by side with other recorders. `python -m benchmarks.capture` runs it all."""
