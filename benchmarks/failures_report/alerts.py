"""What the mail server and the web server received of one case."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from email.message import EmailMessage
from typing import Any

from benchmarks.failures_report.case import Case, Site


@dataclass(frozen=True)
class Told:
    """One alert, as the web server received it.

    :param mailed: whether the mail server received the same, and nothing is missing in it.
    """

    subject: str
    occasion: str
    facts: dict[str, str]
    mailed: bool

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def told_since(site: Site, mails: int, posts: int) -> list[Told]:
    """What came after so many; a mail without its post, or the other way round, is not ``mailed``."""
    got = {str(mail["Subject"]): _text(mail) for mail in site.mails[mails:]}
    numbers = [str(mail["Subject"]) for mail in site.mails[mails:]]
    found = []
    for _, said in site.posts[posts:]:
        title, facts = said["title"], said["facts"]
        same = got.get(title, "")
        missing = [value for value in facts.values() if " ".join(value.split()) not in same]
        complete = numbers.count(title) == 1 and not missing
        found.append(Told(title, said["occasion"], facts, complete))
    return found + [
        Told(subject, "mail only", {}, False)
        for subject in numbers
        if subject not in {one.subject for one in found}
    ]


def _text(mail: EmailMessage) -> str:
    """Its words, without markup's escapes."""
    body = mail.get_body()
    return " ".join(html.unescape(body.get_content()).split()) if body else ""


def wrong(case: Case, told: list[Told]) -> Iterator[str]:
    """What is not as it should be with the alerts of a case."""
    occasions = tuple(one.occasion for one in told)
    if occasions != case.told:
        yield f"alerts {', '.join(occasions) or 'none'} instead of {', '.join(case.told) or 'none'}"
    for one in told:
        if not one.mailed:
            yield f"the mail lacks something, or did not come once: {one.subject}"
        if one.facts.get("Class") != case.kind:
            yield f"the alert says {one.facts.get('Class')}"
        if case.evidence not in (one.facts.get("Evidence") or one.facts.get("What", "")):
            yield f"the alert's evidence lacks {case.evidence!r}"
