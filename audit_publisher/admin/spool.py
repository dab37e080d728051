"""The page of the spool: how full it is everywhere, and what is in this host's."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from audit_logging.changes_admin import acts
from audit_logging.exceptions import SpoolError

from ..conf import conf
from ..durable.spool import REFUSED
from ..models import SpoolPage
from ..operating.chart import chart
from ..operating.overview import look
from ..operating.spool_contents import Contents, Unwilling, readable
from ..routing import topics
from .showing import ShowingAdmin

READ = "audit_publisher.read_spooled_events"
CONTROL = "audit_publisher.control_spool"
_PAGE = 50
#: Characters of an event that a page shows.
_SHOWN = 200_000


@admin.register(SpoolPage)
class SpoolAdmin(ShowingAdmin):
    """Shows the spool; what is done to refused records goes through a page that asks first."""

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Whoever may read events or decide about them may see the page, too."""
        return super().has_view_permission(request, obj) or any(
            request.user.has_perm(permission) for permission in (READ, CONTROL)
        )

    def get_urls(self) -> list[Any]:
        """The overview, a stream, a record, and what can be done about refused ones."""
        view = self.admin_site.admin_view
        name = "audit_publisher_spoolpage"
        return [
            path("", view(self.changelist_view), name=f"{name}_changelist"),
            path("stream/", view(self.stream_view), name="audit_publisher_spool_stream"),
            path("record/", view(self.record_view), name="audit_publisher_spool_record"),
            path(
                "refused/<str:action>/",
                view(self.refused_view),
                name="audit_publisher_spool_refused",
            ),
        ]

    def _render(self, request: HttpRequest, template: str, **context: Any) -> HttpResponse:
        return TemplateResponse(
            request,
            f"admin/audit_publisher/{template}.html",
            {
                **self.admin_site.each_context(request),
                "opts": self.opts,
                "media": self.media,
                "may_read": request.user.has_perm(READ),
                "may_control": request.user.has_perm(CONTROL),
                "refused_stream": REFUSED,
                **context,
            },
        )

    @acts
    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Every spool that was heard of, and the streams of this host's."""
        return require_safe(self._overview)(request)

    def _overview(self, request: HttpRequest) -> HttpResponse:
        self._allow(request)
        contents, overview = Contents(), look()
        problem, streams = "", []
        try:
            streams = contents.streams()
        except SpoolError as error:
            problem = str(error)
        return self._render(
            request,
            "spool",
            title="Spool",
            contents=contents,
            streams=streams,
            problem=problem,
            overview=overview,
            elsewhere=[spool for spool in overview.spools if spool.host != contents.host],
            max_bytes=conf.SPOOL_MAX_BYTES,
            used=sum(stream.bytes for stream in streams),
            chart=chart([process.row.minutes for process in overview.processes]),
        )

    # -- one stream, one record -----------------------------------------------------------

    @acts
    def stream_view(self, request: HttpRequest) -> HttpResponse:
        """A page of one stream's records."""
        return require_safe(self._stream)(request)

    def _stream(self, request: HttpRequest) -> HttpResponse:
        self._allow(request)
        contents = Contents()
        if (other := self._other_host(request, contents)) is not None:
            return other
        stream, start = request.GET.get("stream", ""), _number(request.GET.get("from", "0"))
        problem, entries = "", []
        try:
            entries = contents.page(stream, start, _PAGE + 1)
        except SpoolError as error:
            problem = str(error)
        return self._render(
            request,
            "spool_stream",
            title=f"Spool: {'refused records' if stream == REFUSED else stream}",
            contents=contents,
            stream=stream,
            entries=entries[:_PAGE],
            problem=problem,
            start=start,
            next=self._url("stream", contents, stream=stream, **{"from": entries[_PAGE].offset})
            if len(entries) > _PAGE
            else "",
            back=self._home(),
        )

    @acts
    def record_view(self, request: HttpRequest) -> HttpResponse:
        """GET: all of a record but its event. POST: the event too, which the trail keeps."""
        return require_http_methods(["GET", "HEAD", "POST"])(self._record)(request)

    def _record(self, request: HttpRequest) -> HttpResponse:
        self._allow(request)
        contents = Contents()
        if (other := self._other_host(request, contents)) is not None:
            return other
        stream, offset = request.GET.get("stream", ""), _number(request.GET.get("offset", ""))
        problem = text = ""
        entry = None
        try:
            entry = contents.entry(stream, offset)
            if request.method == "POST" and entry is not None:
                if not request.user.has_perm(READ):
                    raise PermissionDenied
                event = contents.event(stream, offset)
                text = readable(event) if event is not None else ""
        except (SpoolError, Unwilling) as error:
            problem = str(error)
        else:
            if entry is None:
                self.message_user(
                    request, "That record waits no longer.", messages.INFO, fail_silently=True
                )
                return redirect(self._home())
        if len(text) > _SHOWN:
            text = f"{text[:_SHOWN]}\n… and {len(text) - _SHOWN:,} more characters"
        return self._render(
            request,
            "spool_record",
            title=f"Record {offset} of {stream}",
            contents=contents,
            stream=stream,
            entry=entry,
            event=text,
            problem=problem,
            back=self._home(),
        )

    # -- refused records ------------------------------------------------------------------

    @acts
    def refused_view(self, request: HttpRequest, action: str) -> HttpResponse:
        """Ask about the chosen refused records, then do it."""
        if not request.user.has_perm(CONTROL):
            raise PermissionDenied
        return require_POST(self._refused)(request, action)

    def _refused(self, request: HttpRequest, action: str) -> HttpResponse:
        if action not in ("redrive", "discard"):
            raise Http404
        contents = Contents()
        if (other := self._other_host(request, contents)) is not None:
            return other
        everything = request.POST.get("all") == "1"
        offsets = sorted({_number(text) for text in request.POST.getlist("offset")})
        topic = request.POST.get("topic", "").strip()
        back = self._url("stream", contents, stream=REFUSED)
        problems: list[str] = []
        count = 0
        try:
            count = contents.queue.stats(REFUSED).records if contents.exists else 0
            if not (offsets or everything) or not count:
                self.message_user(request, "No record was chosen.", messages.WARNING)
                return redirect(back)
            if request.POST.get("confirmed") == "yes":
                if request.POST.get("_change_reason", "").strip():
                    chosen = None if everything else offsets
                    if action == "redrive":
                        done = contents.redrive(chosen, topic)
                        said = f"{done} will be appended again by the next drain."
                    else:
                        done = contents.discard(chosen)
                        said = f"{done} discarded."
                    self.message_user(request, said, messages.SUCCESS)
                    return redirect(self._home())
                problems.append("Say why: others will want to know.")
        except (SpoolError, Unwilling) as error:
            problems.append(str(error))
        number = count if everything else len(offsets)
        return self._render(
            request,
            "spool_refused",
            title=f"{'Send again' if action == 'redrive' else 'Discard'}: {number} refused "
            f"record{'' if number == 1 else 's'}?",
            contents=contents,
            action=action,
            number=number,
            everything=everything,
            offsets=offsets,
            topic=topic,
            topics=topics(),
            problems=problems,
            reason=request.POST.get("_change_reason", ""),
            back=back,
        )

    # -- helpers --------------------------------------------------------------------------

    def _allow(self, request: HttpRequest) -> None:
        if not self.has_view_permission(request):
            raise PermissionDenied

    def _home(self) -> str:
        return reverse(f"{self.admin_site.name}:audit_publisher_spoolpage_changelist")

    def _url(self, page: str, contents: Contents, **query: Any) -> str:
        url = reverse(f"{self.admin_site.name}:audit_publisher_spool_{page}")
        return f"{url}?{urlencode({'place': contents.place, **query})}"

    def _other_host(self, request: HttpRequest, contents: Contents) -> HttpResponse | None:
        """Where several hosts serve the admin, a request may come to another one's spool."""
        asked = request.POST.get("place") or request.GET.get("place", "")
        if asked == contents.place:
            return None
        return self._render(
            request,
            "spool_elsewhere",
            title="This is another host's spool",
            contents=contents,
            asked=asked,
            back=self._home(),
        )


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise Http404
    return int(text)
