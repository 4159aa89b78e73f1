"""The commands of docs/production.md, "Upgrades, backups, logs", run unchanged with a finished run."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Any

from benchmarks.compose_verify.command import VerifyError, logged
from benchmarks.compose_verify.stack import UP_SECONDS, ComposeStack
from testing.paths import ROOT
from testing.stack import DAG

DOCUMENT = ROOT / "docs" / "production.md"
SECTION = "## Upgrades, backups, logs"
# A mistake after which a backup is needed.
ACCIDENT = "TRUNCATE dag_run CASCADE"


def commands(title: str) -> list[str]:
    """Return the shell commands below a bold title of the section."""
    text = DOCUMENT.read_text(encoding="utf-8").partition(f"\n{SECTION}\n")[2].partition("\n## ")[0]
    part = text.partition(f"**{title}**")[2].partition("\n**")[0]
    return [line.strip() for line in part.splitlines() if line.startswith("    ")]


def run(stack: ComposeStack, profiles: list[str], title: str, folder: Path) -> None:
    """Run the documented commands in a separate folder.

    Raises:
        VerifyError: A command failed, or the document has none.
    """
    lines = commands(title)
    if not lines:
        raise VerifyError(f"{DOCUMENT} has no commands below **{title}** in {SECTION!r}")
    compose = shlex.join([str(part) for part in stack.called(profiles)])
    # `command`: Compose may itself be called as `docker compose`.
    script = "\n".join(["set -euo pipefail", f'docker() {{ shift; command {compose} "$@"; }}', *lines])
    folder.mkdir(parents=True, exist_ok=True)
    logged(["bash", "-c", script], stack.folder / "logs" / "maintenance.log", UP_SECONDS, folder)


def maintain(stack: ComposeStack, profiles: list[str], run_id: str) -> dict[str, Any]:
    """Back up, lose all runs, restore, tidy up; what was seen.

    Raises:
        VerifyError: A command failed, or the restored run differs.
    """
    folder, begin = stack.folder / "maintenance", time.monotonic()
    before = stack.tries(DAG, run_id)
    run(stack, profiles, "Backup", folder)
    stack.inside("database", "psql", "--dbname=airflow", "--command", ACCIDENT)
    if stack.last_run():
        raise VerifyError("the accident has not happened: the run is still there")
    run(stack, profiles, "Restore", folder)
    restored = round(time.monotonic() - begin, 1)
    if (after := stack.tries(DAG, run_id)) != before:
        raise VerifyError(f"the restored run is another one: {after}; before: {before}")
    begin = time.monotonic()
    run(stack, profiles, "Logs", folder)
    return {
        "backup_and_restore_s": restored,
        "dump_mb": round((folder / "airflow.dump").stat().st_size / 1e6, 2),
        "tidy_s": round(time.monotonic() - begin, 1),
    }
