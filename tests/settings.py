"""Settings of the test run: the project's own, in a folder of their own, with quick hashing."""

import atexit
import os
import shutil
import tempfile

# What somebody's shell names may be a production installation: tests must not write there.
for _name in [name for name in os.environ if name.startswith("AUDIT_")]:
    if not _name.startswith("AUDIT_TEST_"):
        del os.environ[_name]

_data = tempfile.mkdtemp(prefix="audit-tests-")
atexit.register(shutil.rmtree, _data, ignore_errors=True)
os.environ["AUDIT_DATA_DIR"] = _data

from config.settings import *  # noqa: E402, F403

PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
