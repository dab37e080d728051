"""What operators see and do: regions, spool, topics, and the trail of every change."""
