"""The committed contract against a running publisher."""
