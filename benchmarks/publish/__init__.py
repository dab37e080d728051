"""What publishing costs and holds: over real clusters, by the publisher's own server."""
