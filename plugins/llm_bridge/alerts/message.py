"""What one alert says, and how it looks in each channel. Whatever comes from users or logs is data here."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from airflow.configuration import conf
from jinja2 import Environment, FileSystemLoader, StrictUndefined

Occasion = Literal["failure", "retry", "recovery", "success", "late", "queued", "hang"]

LONGEST_TITLE = 150
LONGEST_FACT = 1500
LONGEST_LINE = 300
MOST_LINES = 20


@dataclass(frozen=True)
class Message:
    """One alert.

    :param title: one line: which task, what happened.
    :param facts: (label, value), the most telling first.
    :param lines: quoted as they are: a job's last lines, a stack.
    :param links: (label, address or path on the cluster).
    """

    occasion: Occasion
    title: str
    facts: tuple[tuple[str, str], ...] = ()
    lines: tuple[str, ...] = ()
    links: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(
        cls,
        occasion: Occasion,
        title: str,
        facts: Iterable[tuple[str, Any]],
        *,
        lines: Iterable[str] = (),
        links: Iterable[tuple[str, Any]] = (),
    ) -> Message:
        """A message without its empty facts and links, everything cut to a size that any channel takes."""
        return cls(
            occasion,
            _cut(" ".join(_printable(title).split()), LONGEST_TITLE),
            tuple((name, _cut(_printable(str(value)), LONGEST_FACT)) for name, value in facts if value),
            tuple(_cut(_printable(line), LONGEST_LINE) for line in [*lines][-MOST_LINES:]),
            tuple((name, str(value)) for name, value in links if value),
        )

    @property
    def subject(self) -> str:
        return f"[llm-bridge] {self.title}"

    @property
    def text(self) -> str:
        """As plain text."""
        return _template("message.txt.j2").render(message=self).strip() + "\n"

    @property
    def html(self) -> str:
        """As HTML; every value is escaped."""
        return _template("message.html.j2").render(message=self)

    @property
    def mrkdwn(self) -> str:
        """As Slack's own markup, in which only these three characters mean something everywhere."""
        text = self.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        return f"*{self.subject.replace('*', '∗')}*\n{text}"

    @property
    def payload(self) -> dict[str, Any]:
        """As JSON. ``text`` is what chats show."""
        return {
            "occasion": self.occasion,
            "title": self.subject,
            "text": f"{self.title}\n\n{self.text}",
            "facts": dict(self.facts),
            "lines": list(self.lines),
            "links": dict(self.links),
        }


def page(dag_id: str, run_id: str, task_id: str = "", map_index: int = -1, try_number: int = 0) -> str:
    """Address of a run's page in Airflow, or of a task's log; as ``RuntimeTaskInstance.log_url``, also without one."""
    address = f"{conf.get('api', 'base_url', fallback='http://localhost:8080').rstrip('/')}/dags/{dag_id}"
    address += f"/runs/{quote(run_id)}"
    if task_id:
        address += f"/tasks/{task_id}" + (f"/mapped/{map_index}" if map_index >= 0 else "")
        address += f"?try_number={try_number}" if try_number else ""
    return address


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 2]} …"


def _printable(text: str) -> str:
    """Without control characters (a log's colours, NUL), which mail refuses and terminals obey."""
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)


@functools.cache
def _template(name: str) -> Any:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)
