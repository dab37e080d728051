"""The admin as a browser uses it: log in, fill in a form, save."""

from __future__ import annotations

import re
import urllib.parse
import urllib.request
from http.cookiejar import CookieJar

_FIELD = re.compile(r'name="csrfmiddlewaretoken" value="([^"]+)"')


class Admin:
    """One person's session in the admin at `base`."""

    def __init__(self, base: str) -> None:
        self._base = base
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))

    def log_in(self, username: str, password: str) -> None:
        """Log in through the form."""
        page = self._submit(
            "/admin/login/?next=/admin/", {"username": username, "password": password}
        )
        assert "Log out" in page, "could not log in"

    def set_capture_flags(self, service: str, *, enabled: bool) -> None:
        """Save the capture flags of a service; make them if there are none yet."""
        listing = self._get("/admin/audit_logging/captureflags/")
        found = re.search(
            rf'href="(/admin/audit_logging/captureflags/\d+/change/)">{re.escape(service)}<',
            listing,
        )
        address = found.group(1) if found else "/admin/audit_logging/captureflags/add/"
        fields = {
            "service_name": service,
            "response_bodies": "on",
            "sample_rate": "1.0",
            "rules-TOTAL_FORMS": "0",
            "rules-INITIAL_FORMS": "0",
        }
        page = self._submit(address, fields | ({"enabled": "on"} if enabled else {}))
        assert "successfully" in page, page

    def _get(self, path: str) -> str:
        with self._opener.open(self._base + path, timeout=20) as answer:
            return answer.read().decode()

    def _submit(self, path: str, fields: dict[str, str]) -> str:
        token = _FIELD.search(self._get(path))
        assert token, f"{path} has no form"
        form = urllib.parse.urlencode(fields | {"csrfmiddlewaretoken": token.group(1)}).encode()
        with self._opener.open(self._base + path, data=form, timeout=20) as answer:
            return answer.read().decode()
