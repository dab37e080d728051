"""Whether a new Avro schema can read what was written with an older one (BACKWARD)."""

from __future__ import annotations

from typing import Any

#: Written as the key, read as any of the values (Avro's promotions).
_PROMOTIONS = {
    "int": {"long", "float", "double"},
    "long": {"float", "double"},
    "float": {"double"},
    "string": {"bytes"},
    "bytes": {"string"},
}


def backward_problems(reader: Any, writer: Any) -> list[str]:
    """Say why data of `writer` cannot be read as `reader`; an empty list when it can.

    Each problem begins with the path of the field. For schemas without recursive types and
    aliases, which is what log_event.avsc is.

    :param reader: the new schema, as parsed JSON.
    :param writer: the older schema, as parsed JSON.
    """
    return _compare(reader, writer, "")


def _kind(schema: Any) -> str:
    if isinstance(schema, list):
        return "union"
    return schema if isinstance(schema, str) else _kind(schema["type"])


def _plain(schema: Any) -> Any:
    """Undo `{"type": {"type": …}}` nesting down to the innermost complex or primitive type."""
    while isinstance(schema, dict) and isinstance(schema["type"], (dict, list)):
        schema = schema["type"]
    return schema


def _compare(reader: Any, writer: Any, where: str) -> list[str]:
    reader, writer = _plain(reader), _plain(writer)
    if _kind(writer) == "union":
        return [problem for branch in writer for problem in _compare(reader, branch, where)]
    if _kind(reader) == "union":
        if any(not _compare(branch, writer, where) for branch in reader):
            return []
        return [f"{where or 'schema'}: no branch of the union reads {_kind(writer)}"]
    read, written = _kind(reader), _kind(writer)
    if read != written:
        if read in _PROMOTIONS.get(written, ()):
            return []
        return [f"{where or 'schema'}: {written} cannot be read as {read}"]
    if read == "record":
        return _compare_records(reader, writer, where)
    if read == "map":
        return _compare(reader["values"], writer["values"], f"{where}{{}}")
    if read == "array":
        return _compare(reader["items"], writer["items"], f"{where}[]")
    if read == "enum":
        lost = [symbol for symbol in writer["symbols"] if symbol not in reader["symbols"]]
        if lost and "default" not in reader:
            return [f"{where or 'schema'}: symbols {', '.join(lost)} are gone"]
    if read == "fixed" and (reader["size"], reader["name"]) != (writer["size"], writer["name"]):
        return [f"{where or 'schema'}: its size or name changed"]
    return []


def _compare_records(reader: Any, writer: Any, where: str) -> list[str]:
    if reader["name"].rpartition(".")[2] != writer["name"].rpartition(".")[2]:
        return [f"{where or 'schema'}: {writer['name']} became {reader['name']}"]
    written = {field["name"]: field for field in writer["fields"]}
    problems = []
    for field in reader["fields"]:
        path = f"{where}.{field['name']}" if where else field["name"]
        older = written.get(field["name"])
        if older is not None:
            problems += _compare(field["type"], older["type"], path)
        elif "default" not in field:
            problems.append(f"{path}: a new field needs a default")
    return problems
