"""Mailbox of the demo: accepts every mail on port 8026, shows all on port 8025, newest first, and forwards none.

sink.py             serve; mails are stored as files in /var/lib/llm-bridge/mail
sink.py healthy     exit code 0 if the web page answers
"""

from __future__ import annotations

import email.parser
import email.policy
import html
import re
import sys
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

MAIL_PORT, WEB_PORT = 8026, 8025
FOLDER = Path("/var/lib/llm-bridge/mail")
SHOWN = 100
PAGE = """<!doctype html>
<meta charset="utf-8">
<meta http-equiv="refresh" content="5">
<title>Mailbox</title>
<style>
body {{ font: 15px sans-serif; max-width: 60em; margin: 2em auto }}
pre {{ white-space: pre-wrap; background: #f4f4f4; padding: 1em }}
small {{ color: #666 }}
</style>
<h1>Mailbox</h1>
{mails}
"""


class Keeper:
    """Handler of aiosmtpd."""

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        """Store the mail and return the reply to the client."""
        name = f"{time.time_ns()}.eml"
        (FOLDER / f"{name}.part").write_bytes(envelope.original_content)
        (FOLDER / f"{name}.part").rename(FOLDER / name)
        return "250 kept"


def shown(file: Path) -> str:
    """Return a mail as HTML, with the text of its own HTML only: the page must not run scripts of a mail."""
    parser = email.parser.BytesParser(policy=email.policy.default)
    message = parser.parsebytes(file.read_bytes())
    body = message.get_body(("plain", "html"))
    text = body.get_content() if body else ""
    if body and body.get_content_type() == "text/html":
        text = re.sub(r"</t[dh]>", " ", text)  # separates the cells of a row
        text = html.unescape(re.sub(r"<[^>]*>", "", text))
    head = f"from {message['from']} to {message['to']}, {message['date']}"
    return (
        f"<h3>{html.escape(str(message['subject']))}</h3><small>{html.escape(head)}</small>"
        f"<pre>{html.escape(text)}</pre>"
    )


class Web(BaseHTTPRequestHandler):
    """Web page with the mails."""

    def do_GET(self) -> None:
        """Send the page: the newest mails first."""
        files = sorted(FOLDER.glob("*.eml"), reverse=True)[:SHOWN]
        page = PAGE.format(mails="".join(map(shown, files)) or "<p>No mail yet.</p>").encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, format: str, *args: Any) -> None:
        """Log no requests."""


def main() -> int:
    """Serve, or run the health check; return the exit code."""
    if sys.argv[1:] == ["healthy"]:
        with urllib.request.urlopen(f"http://localhost:{WEB_PORT}/", timeout=5) as answer:
            return 0 if answer.status == 200 else 1
    from aiosmtpd.controller import Controller

    FOLDER.mkdir(parents=True, exist_ok=True)
    mail = Controller(Keeper(), hostname="0.0.0.0", port=MAIL_PORT)
    mail.start()
    print(f"mail: SMTP on port {MAIL_PORT}, web on port {WEB_PORT}", flush=True)
    ThreadingHTTPServer(("0.0.0.0", WEB_PORT), Web).serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
