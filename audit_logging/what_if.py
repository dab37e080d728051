"""What would happen to a request to a path: the policy's own answer, in an operator's words.

Nothing is decided here: :meth:`~audit_logging.policy.Policy.explain`, which shares the code of the
request path, is asked with the flags and rules that are saved, or as a form has them unsaved.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from django.core.exceptions import ValidationError
from django.forms import BaseInlineFormSet, ModelForm, inlineformset_factory, modelform_factory
from django.template.defaultfilters import filesizeformat

from .conf import LoggingSettings, conf
from .models import CaptureFlags, CaptureProcess, EndpointRule
from .patterns import RuleError, check_together
from .policy import Explanation, Policy, from_base, from_settings, overlay
from .rules import MAX_RULES, Rule, parse

FLAG_FIELDS = ["service_name", "enabled", "response_bodies", "max_body_bytes", "sample_rate"]
RULE_FIELDS = ["position", "match", "pattern", "level", "sample_rate"]

_MOST_PATH = 8192
_LEVELS = {
    "none": "nothing",
    "metadata": "no bodies",
    "request": "request body only",
    "request_response": "request and response bodies",
}


class RuleFormSet(BaseInlineFormSet):
    """The rules of one service; beside what each must be, what all of them may cost."""

    def clean(self) -> None:
        """Refuse regular expressions that are bearable each, but not together."""
        super().clean()
        patterns = [
            form.cleaned_data["pattern"]
            if form.cleaned_data.get("match") == EndpointRule.Match.REGEX
            else None
            for form in self.forms
            if form not in self.deleted_forms and form.is_valid() and form.cleaned_data
        ]
        if len(self.forms) - len(self.deleted_forms) > MAX_RULES:
            raise ValidationError(f"At most {MAX_RULES} rules are tried. Join some.")
        try:
            check_together(patterns)
        except RuleError as error:
            raise ValidationError(str(error)) from error


@dataclass
class Question:
    """What flags and rules are asked about.

    :ivar rules: as they are tried; the admin's rule number n is ``rules[n - 1]``.
    :ivar problems: what could not be saved as it stands, and so takes no part in the answer.
    """

    service: str
    flags: CaptureFlags | None
    rules: list[EndpointRule] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    saved: bool = True

    def document(self) -> dict[str, Any]:
        """Return flags and rules as a process would get them."""
        return {} if self.flags is None else self.flags.document(self.rules)


@dataclass
class Answer:
    """What would become of the request.

    :ivar verdict: ``yes``, ``no``, or ``share`` where only some traces are recorded.
    """

    path: str
    verdict: str
    title: str
    why: str
    facts: list[tuple[str, str]]
    notes: list[str]
    problems: list[str]


def saved(service: str) -> Question:
    """Ask about what is saved for a service: its own flags, or else those of every service."""
    found = {
        flags.service_name: flags
        for flags in CaptureFlags.objects.filter(
            service_name__in=(service, CaptureFlags.EVERY_SERVICE)
        ).prefetch_related("rules")
    }
    flags = found.get(service) or found.get(CaptureFlags.EVERY_SERVICE)
    return Question(service, flags, list(flags.rules.all()) if flags else [])


def unsaved(data: Mapping[str, Any], instance: CaptureFlags | None) -> Question:
    """Ask about flags and rules as a change form has them now.

    :param instance: the flags that the form changes; None for new ones.
    """
    form_class: type[ModelForm] = modelform_factory(CaptureFlags, fields=FLAG_FIELDS)
    form = form_class(data, instance=instance)
    problems = _problems(form, "") if not form.is_valid() else []
    flags: CaptureFlags = form.instance
    formset_class = inlineformset_factory(
        CaptureFlags, EndpointRule, formset=RuleFormSet, fields=RULE_FIELDS, extra=0
    )
    formset = formset_class(data, instance=instance or CaptureFlags(), prefix="rules")
    formset.is_valid()
    found = []
    for row, item in enumerate(formset.forms):
        if formset._should_delete_form(item) or (item.empty_permitted and not item.has_changed()):
            continue
        rule = item.instance
        if item.errors:
            problems += _problems(item, f"Rule {rule.pattern or row + 1}: ")
        else:
            found.append((rule.position, rule.pk or 1 << 62, row, rule))
    problems += list(formset.non_form_errors())
    rules = [rule for *_, rule in sorted(found, key=lambda entry: entry[:3])]
    service = service_name(str(data.get("service_name", ""))) or flags.service_name
    return Question(service, flags, rules, problems, saved=False)


def _problems(form: Any, where: str) -> list[str]:
    found = []
    for name, errors in form.errors.items():
        label = "" if name == "__all__" else f"{form.fields[name].label}: ".capitalize()
        found += [f"{where}{label}{error}" for error in errors]
    return found


def service_name(text: str) -> str:
    """Return a typed name as a database takes it."""
    return text.replace("\0", "").strip()[:100]


def requested_path(text: str) -> str:
    """Return the path that a service would see of what an operator typed or pasted."""
    text = text.strip()[:_MOST_PATH]
    if text.lower().startswith(("http://", "https://")):
        try:
            text = urlsplit(text).path
        except ValueError:
            pass
    text = unquote(text.partition("#")[0].partition("?")[0])
    return text if text.startswith("/") else f"/{text}"


def settings_of(service: str) -> tuple[Policy, str]:
    """Return what a service's own settings say, and how that is known."""
    told = (
        CaptureProcess.objects.filter(service_name=service)
        .exclude(settings="")
        .order_by("-started_at")
    )
    for text, host in told.values_list("settings", "host")[:3]:
        try:
            return from_base(json.loads(text)), f"as a process on {host} told"
        except (ValueError, RecursionError):
            # Of another version, or not a process at all.
            continue
    if service == conf.SERVICE_NAME and conf.FLAGS_SOURCE == "database":
        return from_settings(conf), "as in this service's settings"
    return (
        from_settings(_Defaults({})),
        "the defaults are assumed, as no process of the service has told its own",
    )


class _Defaults(LoggingSettings):
    """The options as declared, whatever this installation has set."""

    in_django_settings = False


def answer(question: Question, text: str, traceparent: str = "") -> Answer:
    """Return what would become of a request.

    :param text: a path, or an address that holds one.
    :param traceparent: the request's trace context, if it has one.
    """
    path = requested_path(text)
    base, known = settings_of(question.service)
    policy = overlay(base, question.document())
    why = policy.explain(path, traceparent.strip())
    decided = why.decision
    if why.verdict.threshold is not None and not why.traced:
        # Chance decides; what is recorded if it does so is told, and how often.
        decided = why.verdict.decision
    verdict, title = _title(why, decided)
    return Answer(
        path=path,
        verdict=verdict,
        title=title,
        why=_why(why, question, policy),
        facts=_facts(why, decided, known),
        notes=_notes(why, question, policy, path, text),
        problems=question.problems + _left_out(question),
    )


def _left_out(question: Question) -> list[str]:
    """Rules that were saved under other conditions, and that no process uses."""
    found = []
    for number, rule in enumerate(question.rules, 1):
        try:
            parse(rule.document())
        except RuleError as error:
            found.append(f"Rule {number} (position {rule.position}), which nobody uses: {error}")
    return found


def _title(why: Explanation, decided: Any) -> tuple[str, str]:
    share = f"{why.verdict.sample_rate:.4g}"
    if decided.skip == "sampled":
        return "no", f"Not recorded: this trace is not in the share of {share}."
    if decided.skip is not None:
        return "no", "Not recorded."
    bodies = _bodies(decided)
    if why.verdict.threshold is None:
        return "yes", f"Recorded, {bodies}."
    if why.traced:
        return "yes", f"Recorded, {bodies}: this trace is in the share of {share}."
    if why.verdict.sample_rate == 0:
        return "no", "Not recorded: the share of traces recorded is 0."
    return "share", f"Recorded for a share of {share} of all traces, {bodies}."


def _bodies(decided: Any) -> str:
    if decided.request_body and decided.response_body:
        return "with request and response bodies"
    if decided.request_body:
        return "with the request body"
    return "without bodies"


def _why(why: Explanation, question: Question, policy: Policy) -> str:
    verdict = why.verdict
    if verdict.cause == "flag":
        return "The audit is off for this service."
    if verdict.cause == "excluded":
        return f"{verdict.prefix} and all below it is in the service's EXCLUDE_PATHS."
    if verdict.rule is None:
        tried = len(policy.rules)
        if not tried:
            return f"There are no rules; the service's LEVEL is {_LEVELS[verdict.level]}."
        rules = "The one rule is" if tried == 1 else f"None of the {tried} rules is"
        not_about = "not about this path" if tried == 1 else "about this path"
        return f"{rules} {not_about}; the service's LEVEL is {_LEVELS[verdict.level]}."
    return _rule(verdict.rule, question)


def _rule(rule: Rule, question: Question) -> str:
    about = "contains" if rule.match == "substring" else "matches"
    says = f"path {about} {rule.pattern} → {_LEVELS[rule.level]}"
    if rule.origin == "settings":
        return f"Rule {rule.number} of the service's settings (RULES) decides: {says}."
    position = question.rules[rule.number - 1].position
    return (
        f"Rule {rule.number} of {len(question.rules)} (position {position}) decides, as the first "
        f"that is about this path: {says}."
    )


def _facts(why: Explanation, decided: Any, known: str) -> list[tuple[str, str]]:
    verdict = why.verdict
    facts = []
    if verdict.cause in ("rule", "level"):
        facts.append(("Level", _LEVELS[verdict.level]))
    if decided.skip is None:
        facts.append(("Request body", "recorded" if decided.request_body else "left out"))
        facts.append(("Response body", "recorded" if decided.response_body else "left out"))
        if decided.request_body or decided.response_body:
            cap = filesizeformat(decided.max_body_bytes).replace("\xa0", " ")
            facts.append(("Body cap", f"{cap}; a larger body is recorded by its size alone"))
    if verdict.threshold is not None:
        facts.append(("Share of traces", f"{verdict.sample_rate:.4g}"))
    facts.append(("Service's settings", known))
    return facts


def _notes(why: Explanation, question: Question, policy: Policy, path: str, text: str) -> list[str]:
    notes = []
    if path != text.strip():
        notes.append("Rules see the path alone: without host, query and %-encoding.")
    if question.flags is None:
        notes.append("Nothing is saved for this service, nor for every service: settings decide.")
    elif question.saved and question.flags.service_name != question.service:
        notes.append("It has no flags of its own: those of every other service (*) hold.")
    verdict = why.verdict
    if verdict.level == "request_response" and not policy.response_bodies and policy.enabled:
        notes.append("Response bodies are switched off for the whole service.")
    if verdict.threshold is not None and not why.traced:
        notes.append(
            "The trace id decides, the same way in every service; without a trace it is chance. "
            "Give a traceparent to see what becomes of one trace."
        )
    if question.problems:
        notes.append("What is named below cannot be saved as it stands, and takes no part here.")
    return notes
