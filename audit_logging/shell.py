"""Passwords in command lines that give them by a letter: ``mysql -psecret``, ``curl -u me:secret``.

A letter says little by itself (``mkdir -p``, ``docker run -p``): it counts after a command that is
known to take a password by it. Long options say what they are, and are looked for elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from .pieces import short_matches
from .sensitive import MASK

_PASSWORD = "password"  # noqa: S105
_USER = "user:password"
_BY_P = (
    "mysql", "mysqldump", "mysqladmin", "mysqlimport", "mysqlshow", "mysqlcheck", "mariadb",
    "mariadb-dump", "mariadb-admin", "mongo", "mongosh", "mongodump", "mongorestore", "mongoexport",
    "mongoimport", "sshpass",
)  # fmt: skip
_OF_USER = {"-u": _USER, "--user": _USER, "-U": _USER, "--proxy-user": _USER}
_COMMANDS: dict[str, dict[str, str]] = {
    **{command: {"-p": _PASSWORD} for command in (*_BY_P, "login")},
    "redis-cli": {"-a": _PASSWORD},
    "curl": _OF_USER,
}
_LONGEST_COMMAND = 200

_LONGEST = 600
_LETTER = re.compile(
    rf"(?<![\w-])(?:(?:{'|'.join(map(re.escape, _BY_P))}|(?:docker|podman|helm registry|az|oc)"
    r" login)\b(?=[ ])(?:[^\n;|&]|\\\n){0,400}? -p|redis-cli\b(?=[ ])[^\n;|&]{0,400}? -a)[ \t]{0,4}"
)
_SECRET = re.compile(r""""[^"\n]*+"|'[^'\n]*+'|[^\s"'<>;|&\\,)\]}-][^\s"'<>;|&\\]*+""")
_USER_OPTION = re.compile(
    r"""(?<![\w-])(?:-[A-Za-z]{0,6}[uU]|--(?:proxy-)?user)(?:=|[ \t]{0,4})["']?"""
    r"""(?=[0-9]{0,60}+[^\s:"'0-9])[^\s:"']{1,100}+:(?=[^\s"'])"""
)
_REST = re.compile(r"""[^\s"']++""")


def may_be_command(text: str) -> bool:
    """Whether `text` could be a command line with a password behind a letter."""
    return " -p" in text or " -a" in text


def mask_commands(text: str, breathe: Callable[[], None]) -> str:
    """Return `text` without the passwords that commands are given by a letter."""
    if may_be_command(text):
        text = _without(_LETTER, _SECRET, text, breathe)
    if "curl" in text and ":" in text and "-" in text:
        text = _without(_USER_OPTION, _REST, text, breathe)
    return text


def _without(
    option: re.Pattern[str], secret: re.Pattern[str], text: str, breathe: Callable[[], None]
) -> str:
    kept, done = [], 0
    for found in short_matches(option, text, _LONGEST, breathe):
        value = secret.match(text, found.end())
        if value is None or found.end() < done:
            continue
        kept += [text[done : found.end()], MASK]
        done = value.end()
    return "".join([*kept, text[done:]]) if kept else text


def password_options(word: str) -> Mapping[str, str]:
    """Return the letters by which the command `word` takes a password, if it is one."""
    return _COMMANDS.get(word.rpartition("/")[2] if len(word) < _LONGEST_COMMAND else "", {})


def shown_option(word: str, options: Mapping[str, str]) -> str:
    """Return `word` without the password that it holds: ``-psecret``."""
    option = word[:2]
    if len(word) > 2 and options.get(option) == _PASSWORD and not word.startswith("--"):
        return option + MASK
    return word


def shown_after(option: str, value: Any, options: Mapping[str, str]) -> Any:
    """Return what is shown of the `value` that follows `option`."""
    if options[option] == _PASSWORD:
        return MASK if isinstance(value, (str, int)) and value != "" else value
    if not isinstance(value, str):
        return value
    user, colon, secret = value.partition(":")
    return f"{user}:{MASK}" if colon and secret and not user.isdecimal() else value
