"""The text of one alert and its form in each channel. Everything that comes from users or logs is treated as data."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from airflow.configuration import conf
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

Occasion = Literal["failure", "retry", "recovery", "success", "late", "queued", "hang", "test"]

MAX_TITLE_LENGTH = 150
MAX_FACT_LENGTH = 1500
MAX_LINE_LENGTH = 300
MAX_LINES = 20


@dataclass(frozen=True)
class Message:
    """One alert.

    Attributes:
        occasion: The reason for the alert.
        title: One line: which task, and what happened.
        facts: (label, value) pairs, the most informative first.
        lines: Quoted verbatim: a job's last lines, a stack.
        links: (label, URL or path on the cluster) pairs.
    """

    occasion: Occasion
    title: str
    facts: tuple[tuple[str, str], ...] = ()
    lines: tuple[str, ...] = ()
    links: tuple[tuple[str, str], ...] = ()

    @classmethod
    def build(
        cls,
        occasion: Occasion,
        title: str,
        facts: Iterable[tuple[str, Any]],
        *,
        lines: Iterable[str] = (),
        links: Iterable[tuple[str, Any]] = (),
    ) -> Message:
        """Return a message without the empty facts and links, cut to sizes that every channel accepts.

        Args:
            occasion: The reason for the alert.
            title: Any text; it becomes one line.
            facts: (label, value) pairs; those without a value are dropped.
            lines: Any number; the last MAX_LINES are kept.
            links: (label, URL or path) pairs; those without a target are dropped.
        """
        return cls(
            occasion,
            _cut(" ".join(_printable(title).split()), MAX_TITLE_LENGTH),
            tuple((name, _cut(_printable(str(value)), MAX_FACT_LENGTH)) for name, value in facts if value),
            tuple(_cut(_printable(line), MAX_LINE_LENGTH) for line in [*lines][-MAX_LINES:]),
            tuple((name, str(value)) for name, value in links if value),
        )

    @property
    def subject(self) -> str:
        """Subject line of a mail, title of a chat message."""
        return f"[llm-bridge] {self.title}"

    @property
    def text(self) -> str:
        """Plain text."""
        return _template("message.txt.j2").render(message=self).strip() + "\n"

    @property
    def html(self) -> str:
        """HTML; every value is escaped."""
        return _template("message.html.j2").render(message=self)

    @property
    def mrkdwn(self) -> str:
        """Slack's markup, in which only ``&``, ``<`` and ``>`` have a meaning everywhere."""
        text = self.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        return f"*{self.subject.replace('*', '∗')}*\n{text}"

    @property
    def payload(self) -> dict[str, Any]:
        """JSON body of the HTTP channel; chats show ``text``."""
        return {
            "occasion": self.occasion,
            "title": self.subject,
            "text": f"{self.title}\n\n{self.text}",
            "facts": dict(self.facts),
            "lines": list(self.lines),
            "links": dict(self.links),
        }


def page_url(dag_id: str, run_id: str, task_id: str = "", map_index: int = -1, try_number: int = 0) -> str:
    """Return the URL of a run's page in Airflow, or of a task's log.

    The same as ``RuntimeTaskInstance.log_url``, for places that have no such task instance.

    Args:
        dag_id: The DAG.
        run_id: The run.
        task_id: The task; empty for the run's page.
        map_index: -1 for a task that is not mapped.
        try_number: 0 leaves the try out of the URL.
    """
    address = f"{conf.get('api', 'base_url', fallback='http://localhost:8080').rstrip('/')}/dags/{dag_id}"
    address += f"/runs/{quote(run_id)}"
    if task_id:
        address += f"/tasks/{task_id}" + (f"/mapped/{map_index}" if map_index >= 0 else "")
        address += f"?try_number={try_number}" if try_number else ""
    return address


def duration(seconds: float) -> str:
    """Format a duration for people: ``90`` becomes ``2 min``, ``9000`` becomes ``2 h 30 min``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    days, hours, rest = minutes // 1440, minutes // 60 % 24, minutes % 60
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {rest} min" if hours else f"{rest} min"


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 2]} …"


def _printable(text: str) -> str:
    """Replace control characters (a log's colours, NUL), which mail refuses and terminals interpret."""
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)


@functools.cache
def _template(name: str) -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)
