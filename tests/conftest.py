"""What every test run shares."""

pytest_plugins = ["tests.services.fixtures"]
