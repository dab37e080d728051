"""Secrets whose names stand beside them: in a JSON Patch, a change log, a form's answers, a command
line; and names written in letters that only look like Latin ones."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode

import pytest

from audit_logging.redaction import MASK, Redactor

SECRET = "hunter2Zq9"
JSON = "application/json"
FORM = "application/x-www-form-urlencoded"

redactor = Redactor(("loyalty-id",))


def of(document: Any) -> str:
    return str(redactor.body(json.dumps(document).encode(), JSON).text)


@pytest.mark.parametrize("value", [SECRET, [SECRET], {"x": {"y": [SECRET]}}])
@pytest.mark.parametrize(
    "document",
    [
        [{"op": "replace", "path": "/user/password", "value": ...}],
        [{"value": ..., "path": "/user/password", "op": "add"}],
        [{"op": "add", "path": "/user/tokens/-", "value": ...}],
        [{"op": "add", "path": "/user/tokens/0", "value": ...}],
        [{"op": "add", "path": "/credentials/aws/x", "value": ...}],
        [{"op": "add", "path": "/card/number", "value": ...}],
        [{"op": "test", "from": "/user/password", "path": "/x", "value": ...}],
        {"Operations": [{"op": "replace", "path": "password", "value": ...}]},
        {"pointer": "/api/key", "newValue": ...},
        {"path": "$.user['pin']", "old_value": ..., "new_value": ...},
        {"field": "password", "old_value": ..., "new_value": ...},
        {"field": "password", "oldValue": ..., "newValue": ...},
        {"field": "user.password", "from": ..., "to": ...},
        {"attribute": "password", "before": ..., "after": ...},
        {"property": "loyaltyId", "old": ..., "new": ...},
        {"name": "password", "text": ...},
        {"type": "password", "label": "x", "text": ...},
        {"label": "Password", "answer": ...},
        {"question": "Your PIN?", "response": ...},
        {"key": "token", "string_value": ...},
        {"key": "token", "stringValue": ...},
        {"Name": "SecretAccessKey", "Value": ...},
        {"NAME": "SecretAccessKey", "VALUE": ...},
        {"ParameterKey": "DbPassword", "ParameterValue": ...},
        {"kind": "E", "path": ["user", "password"], "lhs": ..., "rhs": ...},
        {"op": "replace", "path": ["users", 0, "password"], "value": ...},
        {"field": {"id": "a1", "name": "password"}, "text": ...},
        {"question": {"label": "Your PIN?"}, "answer": ...},
    ],
)
def test_values_beside_their_names(document: Any, value: Any) -> None:
    def filled(node: Any) -> Any:
        if isinstance(node, list):
            return [filled(item) for item in node]
        if isinstance(node, dict):
            return {key: filled(item) for key, item in node.items()}
        return value if node is ... else node

    document = filled(document)
    for written in (of(document), of({"deep": [{"payload": json.dumps(document)}]})):
        assert SECRET not in written
        assert MASK in written


@pytest.mark.parametrize(
    "words",
    [
        ["--password", SECRET, "x"],
        ["x", "--password", SECRET],
        ["login", f"--token={SECRET}", "x"],
        ["login", "-p", SECRET],
        ["user", "bob", "password", SECRET, "x"],
        ["a", "pin", "918273", "x"],
        ["mysql", "-u", "root", f"-p{SECRET}", "db"],
        ["/usr/bin/docker", "login", "-u", "bob", "-p", SECRET],
        ["redis-cli", "-a", SECRET],
        ["curl", "-s", "-u", f"bob:{SECRET}", "http://x"],
        ["curl", "--user", f"bob:{SECRET}"],
    ],
)
def test_names_anywhere_in_a_list(words: list[Any]) -> None:
    for written in (of(words), of({"args": words}), of([[words]])):
        assert SECRET not in written
        assert "918273" not in written
        assert MASK in written


@pytest.mark.parametrize(
    "query",
    [
        "mutation($p: String!) { login(password: $p) { id } }",
        "mutation($p:String!){login(user:$u,input:{name:$u, pin:$p}){id}}",
        "mutation($p: String!) {\n  reset(\n    newPassword:\n $p\n  )\n}",
    ],
)
@pytest.mark.parametrize("value", [SECRET, {"x": SECRET}])
def test_variables_of_an_operation(query: str, value: Any) -> None:
    document = {"query": query, "variables": {"p": value, "u": "bob"}}
    for written in (of(document), of([document]), of({"a": json.dumps(document)})):
        assert SECRET not in written
        assert "bob" in written
    harmless = {"query": "query($p: Int) { items(page: $p) { id } }", "variables": {"p": 3}}
    assert of(harmless) == json.dumps(harmless)


def test_numbers_after_names_in_a_list() -> None:
    assert of(["a", "pin", 918273]) == f'["a","pin","{MASK}"]'
    assert of(["a", "session", 3]) == '["a", "session", 3]'


@pytest.mark.parametrize(
    "text",
    [
        f'"--secret {SECRET}"',
        f'cmd "--secret {SECRET}" x',
        f"argv ['login', '--password', '{SECRET}']",
        f"PGPASSWORD={SECRET} psql -h x",
        f"export TOKEN={SECRET}",
        f"curl -u bob:{SECRET} http://x",
        f'curl -H "a: b" --user=bob:{SECRET}',
        f'curl -H x \\\n  -u "bob:{SECRET}"',
        f"mysql -u root -p{SECRET} db",
        f"mysqldump -h x -p '{SECRET}'",
        f"echo x | docker login -u bob -p {SECRET}",
        f"mysql -h x \\\n  -p{SECRET}",
        f"curl -sSu bob:{SECRET} http://x",
        f"sshpass -p {SECRET} ssh x",
        f"redis-cli -h x -a {SECRET}",
        f"Set-Cookie: a={SECRET}; Path=/",
        f"Cookie: a=1; b={SECRET}",
        f"AWS4-HMAC-SHA256 Credential=x/2026, SignedHeaders=host, Signature={SECRET}",
        f"https://x.blob.core.windows.net/a?sv=1&sig={SECRET}",
        f"https://x/?a=1&X-Amz-Signature={SECRET}",
        f"https://x/?X-Goog-Signature={SECRET}&x=1",
        f'mutation {{ login(password: "{SECRET}") {{ id }} }}',
        f'INFO {{"name":"password","text":"{SECRET}"}}',
        f'INFO {{"label":"Password","answer":"{SECRET}"}}',
        f'INFO {{"path":"/user/password","value":"{SECRET}"}}',
        f'INFO {{"field":"password","old_value":"{SECRET}","new_value":"{SECRET}"}}',
        f'INFO {{"field":"password","old_value":"","new_value":"{SECRET}"}}',
        f"p\u0430ssword={SECRET}",
        f"pass\u200bword: {SECRET}",
    ],
)
def test_command_lines_addresses_and_quoted_changes(text: str) -> None:
    for recorded in (
        redactor.text(text),
        of({"x": text}),
        of({"x": json.dumps({"y": text})}),
        of({"query": text, "variables": {"a": 1}}),
        str(redactor.body(text.encode(), "text/plain").text),
    ):
        assert SECRET not in recorded
        assert MASK in recorded


@pytest.mark.parametrize(
    "key",
    [
        "p\u0430ssword", "\u0440\u0430ssw\u043erd", "P\u0410SSWORD", "t\u03bfken",
        "pass\u200bword", "p\u200bin", "\ufeffpin", "p\u00adin", "\u03a1\u0399\u039d",
        "\uff50\uff49\uff4e", "\uff30\uff21\uff33\uff33\uff37\uff2f\uff32\uff24",
        "\U0001d429\U0001d422\U0001d427", "p\u0131n", "l\u043eyalty_id", "p\ufe0fin",
    ],
)  # fmt: skip
def test_names_in_letters_that_look_alike(key: str) -> None:
    for ascii_only in (True, False):
        text = json.dumps({key: SECRET}, ensure_ascii=ascii_only)
        assert SECRET not in str(redactor.body(text.encode(), JSON).text)
    assert SECRET not in redactor.query(urlencode({key: SECRET}))


def test_names_in_other_scripts_stay() -> None:
    document = {"имя": "Анна", "город": "Москва", "όνομα": "Άννα", "名前": "花子"}
    text = json.dumps(document, ensure_ascii=False)
    assert redactor.body(text.encode(), JSON).text == text


def test_values_beside_their_names_in_a_form() -> None:
    for name in ("field=password&new_value=", "path=/user/password&value=", "Name=pin&Value="):
        assert SECRET not in str(redactor.body(f"{name}{SECRET}".encode(), FORM).text)
        assert SECRET not in redactor.query(f"{name}{SECRET}")
    for plain in ("from=/login/token&to=/home", "path=/items/7&value=3", "id=session&to=x"):
        assert redactor.query(plain) == plain


@pytest.mark.parametrize(
    "document",
    [
        {"path": "/items/7", "value": 3},
        {"path": ["items", 7], "value": 3},
        {"field": {"id": "a1", "name": "City"}, "text": "Pinneberg"},
        {"path": "/sessions/3/color", "value": "red"},
        {"path": "src/auth/token.py", "content": "x = 1"},
        {"label": "City", "answer": "Pinneberg"},
        {"question": "Where do you live?", "response": "Pinneberg"},
        ["session", "A"],
        ["session", 3, "b"],
        ["session", "2026-11-23T10:00:00Z", "x"],
        ["Room 1", "session", "Room 2"],
        ["email", "password", "first_name"],
        {"type": "card", "text": "hello"},
        {"type": "token", "text": "the"},
        {"id": "session-1", "text": "hello"},
        {"name": "Secret Garden", "text": "a nice book"},
        {"name": "Session 1", "from": "10:00", "to": "11:00"},
        {"name": "Q1", "from": "2026-01-01", "to": "2026-02-01"},
        {"name": "Cookies", "value": 3.99},
        {"from": "/auth/login", "to": "/"},
        [{"op": "move", "from": "/a/b", "path": "/c"}],
        [{"op": "copy", "from": "/a/b", "path": "/password"}],
        [{"op": "replace", "path": "/title", "value": "The Secret Garden"}],
        ["mkdir", "-p", "/var/lib/mysql"],
        ["docker", "run", "-p", "3306:3306", "mysql"],
        ["--page", "3", "x"],
        ["--password", "--verbose"],
        ["curl", "-u", "1000:1000"],
        {"run": "mkdir -p /var/lib/mysql; mysql -u root"},
        {"run": "docker run -p 3306:3306 mysql -u x"},
        {"run": "mysql -u root -p < dump.sql"},
        {"note": "use -p for ports, mysql is fine"},
        {"note": "curl http://x -u 1000:1000"},
    ],
)
def test_what_only_looks_like_it_stays(document: Any) -> None:
    assert of(document) == json.dumps(document)
    assert of({"deep": [document]}) == json.dumps({"deep": [document]})
