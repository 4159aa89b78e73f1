"""Alerts of one case, as received by the mail server and the web server."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from email.message import EmailMessage
from typing import Any

from benchmarks.failures_report.case import Case, Site


@dataclass(frozen=True)
class Alert:
    """One alert, as the web server received it.

    Attributes:
        subject: Title.
        occasion: Event of the alert: `failure`, `retry`, `hang`, ...
        facts: Names and values.
        mailed: True if the mail server received it once, with all facts.
    """

    subject: str
    occasion: str
    facts: dict[str, str]
    mailed: bool

    def as_dict(self) -> dict[str, Any]:
        """Return the alert as JSON values, for the report."""
        return asdict(self)


def alerts_since(site: Site, mails: int, posts: int) -> list[Alert]:
    """Return the alerts after the first ``mails`` and ``posts``; one without its counterpart is not ``mailed``."""
    got = {str(mail["Subject"]): _text(mail) for mail in site.mails[mails:]}
    numbers = [str(mail["Subject"]) for mail in site.mails[mails:]]
    found = []
    for _, post in site.posts[posts:]:
        title, facts = post["title"], post["facts"]
        same = got.get(title, "")
        missing = [value for value in facts.values() if " ".join(value.split()) not in same]
        complete = numbers.count(title) == 1 and not missing
        found.append(Alert(title, post["occasion"], facts, complete))
    return found + [
        Alert(subject, "mail only", {}, False)
        for subject in numbers
        if subject not in {one.subject for one in found}
    ]


def _text(mail: EmailMessage) -> str:
    """Return a mail's text without escapes and repeated blanks."""
    body = mail.get_body()
    return " ".join(html.unescape(body.get_content()).split()) if body else ""


def wrong(case: Case, alerts: list[Alert]) -> Iterator[str]:
    """Yield the differences between a case's alerts and the expected ones."""
    occasions = tuple(one.occasion for one in alerts)
    if occasions != case.alerts:
        yield f"alerts {', '.join(occasions) or 'none'} instead of {', '.join(case.alerts) or 'none'}"
    for one in alerts:
        if not one.mailed:
            yield f"the mail is incomplete, missing or repeated: {one.subject}"
        if one.facts.get("Class") != case.kind:
            yield f"the alert's class is {one.facts.get('Class')}"
        if case.evidence not in (one.facts.get("Evidence") or one.facts.get("What", "")):
            yield f"the alert's evidence lacks {case.evidence!r}"
