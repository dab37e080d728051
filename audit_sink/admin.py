"""Admin of the sink: sites are edited; what the ledger holds is only looked at."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest

from .ingest.handover import obstacle
from .models import Batch, DeadLetter, LakeFile, Lane, Producer, Site
from .status import human_bytes


class ReadOnlyAdmin(admin.ModelAdmin):
    """A model that nobody adds, changes or deletes here."""

    def has_add_permission(self, request: HttpRequest, *args: Any) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(Site)
class SiteAdmin(admin.ModelAdmin):
    """Countries; a new row is a new sink."""

    list_display = (
        "code",
        "name",
        "site_id",
        "bucket_in_use",
        "takes_unlabelled",
        "paused",
        "last_error",
        "last_error_at",
    )
    list_filter = ("paused",)
    search_fields = ("code", "name", "site_id")
    # Kept, but nothing heeds them yet: a switch without effect would be trusted.
    exclude = ("errors_tolerance", "dead_letter_limit")
    readonly_fields = ("bucket_in_use", "last_error", "last_error_at")
    actions = ("pause", "resume")

    @admin.display(description="bucket in use")
    def bucket_in_use(self, site: Site) -> str:
        return site.bucket_url if site.code else "-"

    @admin.action(description="Pause: read nothing until resumed", permissions=["change"])
    def pause(self, request: HttpRequest, queryset: QuerySet[Site]) -> None:
        count = queryset.update(paused=True)
        self.message_user(request, f"{count} paused. Their records wait in the event log.")

    @admin.action(description="Resume, and try again at once what failed", permissions=["change"])
    def resume(self, request: HttpRequest, queryset: QuerySet[Site]) -> None:
        codes = list(queryset.values_list("code", flat=True))
        count = queryset.update(paused=False)
        Lane.objects.filter(sink__in=codes, failures__gt=0).update(failures=0, due_at=0)
        self.message_user(request, f"{count} resumed.")

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        # The code names the sink's progress: renaming it would start from the beginning.
        return (*self.readonly_fields, "code") if obj else self.readonly_fields

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        allowed = super().has_delete_permission(request, obj)
        # What a site has read stays its own: pause it instead.
        return allowed and (obj is None or not Batch.objects.filter(sink=obj.code).exists())

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        to_delete, count, perms_needed, protected = super().get_deleted_objects(objs, request)
        # What is protected keeps the page from deleting, and is listed there.
        reasons = (obstacle(site, deleted=True) for site in objs)
        return to_delete, count, perms_needed, [*protected, *filter(None, reasons)]

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        actions = super().get_actions(request)
        actions.pop("delete_selected", None)
        return actions

    def save_model(self, request: HttpRequest, obj: Site, form: Any, change: bool) -> None:
        super().save_model(request, obj, form, change)
        if not change or "bucket" in form.changed_data:
            self._probe(request, obj)

    def _probe(self, request: HttpRequest, site: Site) -> None:
        """Tell at once whether the bucket can be used."""
        from .exceptions import BucketError
        from .lake.storage import open_bucket

        try:
            open_bucket(site.bucket_url).probe()
        except BucketError as error:
            messages.warning(request, f"The bucket cannot be used yet: {error}")


@admin.register(Lane)
class LaneAdmin(ReadOnlyAdmin):
    """Each sink's way through each partition."""

    list_display = (
        "__str__",
        "next_offset",
        "high_watermark",
        "lag",
        "failures",
        "last_error",
        "last_error_at",
    )
    list_filter = ("sink", "region", "topic")
    actions = ("accept_lost",)

    def has_accept_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("audit_sink.change_lane")

    @admin.action(
        description="Go on without records that are gone from the log", permissions=["accept"]
    )
    def accept_lost(self, request: HttpRequest, queryset: QuerySet[Lane]) -> None:
        from audit_publisher.exceptions import EventLogError

        from .exceptions import RangeUnavailable
        from .ingest.upkeep import accept_lost

        for lane in queryset:
            try:
                lost = accept_lost(lane)
            except (RangeUnavailable, EventLogError) as error:
                messages.error(request, str(error))
            else:
                level = messages.WARNING if lost else messages.INFO
                messages.add_message(request, level, f"{lane}: {lost:,} offsets are lost.")

    @admin.display(description="lag")
    def lag(self, lane: Lane) -> int:
        return max(0, lane.high_watermark - lane.next_offset)


@admin.register(Batch)
class BatchAdmin(ReadOnlyAdmin):
    """Ranges of the log, and what became of their records."""

    list_display = (
        "id",
        "sink",
        "partition_read",
        "offsets",
        "state",
        "stored",
        "duplicates",
        "dead_lettered",
        "size",
        "done_at",
        "took",
    )
    list_filter = ("sink", "state", "region", "topic", "done_at")
    date_hierarchy = "claimed_at"
    show_full_result_count = False

    @admin.display(description="partition", ordering="partition")
    def partition_read(self, batch: Batch) -> str:
        return f"{batch.topic} {batch.partition}, {batch.region}"

    @admin.display(description="offsets", ordering="start_offset")
    def offsets(self, batch: Batch) -> str:
        return f"{batch.start_offset:,} to {batch.end_offset - 1:,}"

    @admin.display(description="size", ordering="bytes")
    def size(self, batch: Batch) -> str:
        return human_bytes(batch.bytes)

    @admin.display(description="took")
    def took(self, batch: Batch) -> str:
        if batch.done_at is None:
            return "-"
        return f"{(batch.done_at - batch.claimed_at).total_seconds():.1f} s"


@admin.register(LakeFile)
class LakeFileAdmin(ReadOnlyAdmin):
    """Files of the lake."""

    list_display = ("name", "site", "service", "endpoint", "date", "rows", "size", "times")
    list_filter = ("site", "date", "service", "endpoint")
    search_fields = ("path",)
    list_select_related = ("batch",)
    show_full_result_count = False

    @admin.display(description="file", ordering="path")
    def name(self, file: LakeFile) -> str:
        return file.path.rpartition("/")[2].removesuffix(".parquet")

    @admin.display(description="size", ordering="bytes")
    def size(self, file: LakeFile) -> str:
        return human_bytes(file.bytes)

    @admin.display(description="requests (UTC)", ordering="min_request_ts")
    def times(self, file: LakeFile) -> str:
        return f"{file.min_request_ts:%H:%M:%S} to {file.max_request_ts:%H:%M:%S}"


@admin.register(DeadLetter)
class DeadLetterAdmin(ReadOnlyAdmin):
    """Poison records: where they stood, and why they were not stored."""

    list_display = ("id", "batch", "offset", "reason", "message")
    list_filter = ("reason", "batch__sink")
    list_select_related = ("batch",)


@admin.register(Producer)
class ProducerAdmin(ReadOnlyAdmin):
    """Capture processes: how many events each has numbered. audit_verify says what is missing."""

    list_display = (
        "epoch",
        "service_name",
        "host",
        "pid",
        "state",
        "numbers",
        "known_losses",
        "started_at",
        "last_at",
    )
    list_filter = ("state", "service_name", "last_at")
    search_fields = ("epoch", "host")
    show_full_result_count = False

    @admin.display(description="numbered", ordering="seq")
    def numbers(self, producer: Producer) -> str:
        return f"{producer.seq:,}"

    @admin.display(description="dropped")
    def known_losses(self, producer: Producer) -> str:
        return ", ".join(f"{count:,} {reason}" for reason, count in producer.dropped.items()) or "-"
