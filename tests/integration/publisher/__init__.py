"""The publisher between two real clusters, with every fault that can be made in between."""
