"""Uploads, through each kind of handler."""

from __future__ import annotations

from typing import Any

from django.core.files.uploadedfile import UploadedFile
from django.core.files.uploadhandler import (
    FileUploadHandler,
    MemoryFileUploadHandler,
    SkipFile,
    StopUpload,
    TemporaryFileUploadHandler,
)
from django.http import HttpRequest, JsonResponse

from .apps import note


class Counting(FileUploadHandler):
    """Sees each chunk, keeps none, and stops or skips where it is told to."""

    chunk_size = 4096

    def __init__(self, request: HttpRequest, answer: type[Exception] | None) -> None:
        super().__init__(request)
        self._answer = answer

    def receive_data_chunk(self, raw_data: bytes, start: int) -> bytes | None:
        note(f"chunk {start} {len(raw_data)}")
        if self._answer is StopUpload and start:
            raise StopUpload(connection_reset=False)
        if self._answer is SkipFile:
            raise SkipFile
        return raw_data

    def file_complete(self, file_size: int) -> UploadedFile | None:
        note(f"file {file_size}")
        return None


def upload(request: HttpRequest) -> JsonResponse:
    """Answers what arrived; ``?with=`` names the handlers."""
    name = request.GET.get("with", "")
    if name == "temporary":
        request.upload_handlers = [TemporaryFileUploadHandler(request)]
    elif name in ("counting", "stopping", "skipping"):
        answer: dict[str, Any] = {"stopping": StopUpload, "skipping": SkipFile}
        request.upload_handlers.insert(0, Counting(request, answer.get(name)))
    elif name == "memory":
        request.upload_handlers = [MemoryFileUploadHandler(request)]
    files = [
        [field, file.name, file.size, type(file).__name__, file.read().decode("latin-1")[:100]]
        for field, several in request.FILES.lists()
        for file in several
    ]
    return JsonResponse({"fields": dict(request.POST.lists()), "files": files})
