"""The event's binary form: the schema's own encoder, the registry, and what readers can bear."""
