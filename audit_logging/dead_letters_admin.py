"""Admin of dead letters: see why events were refused, send them again, or discard them."""

from __future__ import annotations

import json
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.models import CHANGE, LogEntry
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.text import Truncator

from .dead_letters import DeadLetter, discard, resend

#: Characters of an event that a page shows.
_SHOWN = 200_000
_LISTED = 20


@admin.register(DeadLetter)
class DeadLetterAdmin(admin.ModelAdmin):
    """Shows letters; changes none but by its two actions, each of which is logged."""

    list_display = ["last_seen", "about", "said", "answer", "attempts", "state"]
    list_filter = ["state", "service_name", "status", "last_seen"]
    search_fields = ["request_id", "service_name", "endpoint_name", "reason"]
    search_help_text = "Request id, service, endpoint, or words of the reason."
    list_per_page = 50
    show_full_result_count = False
    actions = ["send_again", "discard"]
    fields = [
        "state", "service_name", "endpoint_name", "request_id", "status", "reason", "attempts",
        "first_seen", "last_seen", "shown_event",
    ]  # fmt: skip
    readonly_fields = [name for name in fields if name != "reason"] + ["reason"]

    class Media:
        css = {"all": ["audit_logging/dead_letters.css"]}

    def get_queryset(self, request: HttpRequest) -> QuerySet[DeadLetter]:
        """Without the events, which are large: a list does not show them."""
        return super().get_queryset(request).defer("event")

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Only the publisher makes dead letters."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Discarding leaves a trace; deleting would not."""
        return False

    # -- what is shown ----------------------------------------------------------------------

    @admin.display(description="event", ordering="service_name")
    def about(self, letter: DeadLetter) -> SafeString | str:
        """Which event it is."""
        if not letter.request_id and not letter.service_name:
            return "a damaged batch"
        return format_html(
            '{} {}<br><span class="audit-quiet">{}</span>',
            letter.service_name,
            letter.endpoint_name,
            letter.request_id,
        )

    @admin.display(description="answer", ordering="status")
    def answer(self, letter: DeadLetter) -> int | None:
        """The HTTP status, under a short heading."""
        return letter.status

    @admin.display(description="reason", ordering="reason")
    def said(self, letter: DeadLetter) -> str:
        """The reason, in a line."""
        return Truncator(letter.reason).chars(120)

    @admin.display(description="event")
    def shown_event(self, letter: DeadLetter) -> SafeString | str:
        """The event, laid out for reading."""
        if not letter.event:
            return "Not kept any more."
        try:
            text = json.dumps(json.loads(letter.event), indent=2, ensure_ascii=False)
        except (ValueError, RecursionError):
            # A damaged batch, in base64.
            text = letter.event
        more = len(text) - _SHOWN
        if more > 0:
            text = f"{text[:_SHOWN]}\n… and {more:,} more characters"
        return format_html('<pre class="audit-event">{}</pre>', text)

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """The list, under a title that promises no editing."""
        return super().changelist_view(request, {"title": "Dead letters"} | (extra_context or {}))

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """The page of one letter, with what can be done about it."""
        letter = self.get_object(request, object_id)
        offered = []
        if letter is not None and self.has_change_permission(request, letter):
            if letter.state == DeadLetter.State.WAITING and letter.sendable:
                offered.append(("send_again", "Send again"))
            if letter.state in (DeadLetter.State.WAITING, DeadLetter.State.RESEND):
                offered.append(("discard", "Discard …"))
        context = {"title": "Dead letter", "letter_actions": offered} | (extra_context or {})
        return super().change_view(request, object_id, form_url, context)

    # -- what is done -----------------------------------------------------------------------

    @admin.action(description="Send again", permissions=["change"])
    def send_again(self, request: HttpRequest, queryset: QuerySet[DeadLetter]) -> None:
        """Have the chosen letters sent again, by whatever delivers: workers or the service."""
        asked = queryset.count()
        with transaction.atomic(using=queryset.db):
            keys = resend(queryset)
            self._log(request, keys, "Sent again.")
        if keys:
            self.message_user(
                request,
                f"{len(keys)} will be sent again within seconds, by a worker or the service "
                "itself. What is refused once more comes back to this list.",
                messages.SUCCESS,
            )
        if len(keys) < asked:
            self.message_user(
                request,
                f"{asked - len(keys)} cannot be sent again: they do not wait for a decision, or "
                "are damaged.",
                messages.WARNING,
            )

    @admin.action(description="Discard …", permissions=["change"])
    def discard(
        self, request: HttpRequest, queryset: QuerySet[DeadLetter]
    ) -> TemplateResponse | None:
        """Throw the chosen letters away, once that is confirmed."""
        chosen = queryset.filter(state__in=[DeadLetter.State.WAITING, DeadLetter.State.RESEND])
        count = chosen.count()
        if not count:
            self.message_user(
                request, "None of them waits; there is nothing to discard.", messages.WARNING
            )
            return None
        if request.POST.get("post") == "yes":
            with transaction.atomic(using=queryset.db):
                keys = discard(chosen)
                self._log(request, keys, "Discarded.")
            self.message_user(request, f"{len(keys)} discarded.", messages.SUCCESS)
            return None
        everything = request.POST.get("select_across") == "1"
        shown = list(chosen[:_LISTED])
        keys_chosen = request.POST.getlist(ACTION_CHECKBOX_NAME)
        return TemplateResponse(
            request,
            "admin/audit_logging/deadletter/discard.html",
            {
                **self.admin_site.each_context(request),
                "opts": self.opts,
                "title": "Discard dead letters?",
                "count": count,
                "shown": shown,
                "more": max(0, count - len(shown)),
                "keys": keys_chosen,
                "everything": everything,
                "media": self.media,
            },
        )

    @staticmethod
    def _log(request: HttpRequest, keys: list[int], message: str) -> None:
        for start in range(0, len(keys), 500):
            part = DeadLetter.objects.defer("event").filter(pk__in=keys[start : start + 500])
            LogEntry.objects.log_actions(
                user_id=request.user.pk,
                queryset=part,
                action_flag=CHANGE,
                change_message=message,
                single_object=False,
            )
