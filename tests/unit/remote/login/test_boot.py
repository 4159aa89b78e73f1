"""boot.py: modules from standard input, imported under their own names."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from llm_bridge.remote import helpers

FIRST = "VALUE = 3\n"
SECOND = "from a.b import first\ndef main(request):\n    return {'sum': first.VALUE + request['n']}\n"


def boot(
    modules: dict[str, str], main: str, request: Any, more: str = ""
) -> subprocess.CompletedProcess[str]:
    line = json.dumps({"modules": modules, "main": main, "request": request})
    argv = helpers.argv(sys.executable)
    return subprocess.run([argv[0], "-S", *argv[1:]], input=f"{line}\n{more}", capture_output=True, text=True)


def test_a_module_imports_those_before_it_and_its_answer_is_json() -> None:
    done = boot({"a.b.first": FIRST, "a.b.second": SECOND}, "a.b.second", {"n": 4})
    assert json.loads(done.stdout) == {"sum": 7}, done.stderr


def test_a_helper_without_an_answer_reads_further_lines_itself() -> None:
    source = "import sys\ndef main(request):\n    print(sys.stdin.read().upper())\n"
    assert boot({"a.loop": source}, "a.loop", {}, "one\ntwo\n").stdout == "ONE\nTWO\n\n"


def test_an_error_of_a_helper_ends_with_its_traceback_and_names_the_module() -> None:
    done = boot({"a.bad": "def main(request):\n    return 1 / 0\n"}, "a.bad", {})
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr and '"a.bad"' in done.stderr
