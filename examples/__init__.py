"""A service that uses the audit, and the demo that runs everything around it."""
