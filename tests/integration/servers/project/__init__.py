"""A project with views of every kind, run with and without the middleware. Plain Django and DRF."""
