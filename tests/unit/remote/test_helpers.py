"""What runs on login nodes keeps to Python 3.6, and boot.py runs it there without an installation."""

from __future__ import annotations

import ast
import base64
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest

import llm_bridge.remote
from llm_bridge.diagnosis import evidence
from llm_bridge.remote import attempt_dir, helpers, messages
from llm_bridge.remote.attempt_dir import Owner
from llm_bridge.remote.messages import (
    ActiveAnswer,
    ActiveJob,
    ActiveRequest,
    AttemptsAnswer,
    AttemptsRequest,
    CheckRequest,
    CommandAnswer,
    CommandRequest,
    DescribeRequest,
    HelperAnswer,
    HelperCall,
    JobNews,
    JobQuery,
    LogQuery,
    OldRunsAnswer,
    OldRunsRequest,
    PollAnswer,
    PollRequest,
    RateBudget,
    RayHttpAnswer,
    RayHttpRequest,
    ResultAnswer,
    ResultRequest,
    StageRequest,
    StartAnswer,
    StartRequest,
    SubmitAnswer,
    SubmitRequest,
    decode,
    encode,
)

REMOTE = Path(llm_bridge.remote.__file__).parent
OWNER = Owner(dag_id="d", run_id="r", task_id="t", map_index=-1, key="llmb-a", version="1")
SOURCES = [
    *sorted((REMOTE / "login").glob("*.py")),
    REMOTE / "attempt_dir.py",
    REMOTE / "messages.py",
    REMOTE / "node" / "stack_dump.py",
]
# Newer than 3.6: of subprocess.run, of text, bytes and paths, and modules.
NEWER_ARGUMENTS = {"capture_output", "text", "missing_ok"}
CALLS_WITH_NEWER_ARGUMENTS = {"run", "Popen", "check_output", "check_call", "unlink"}
NEWER_METHODS = {"removeprefix", "removesuffix", "fromisoformat", "time_ns", "is_relative_to"}
NEWER_MODULES = {"__future__", "dataclasses", "contextvars", "zoneinfo", "tomllib", "importlib.resources"}


def newer(tree: ast.AST) -> Iterator[str]:
    """Names that Python 3.6 does not know, of those that are easy to see."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in CALLS_WITH_NEWER_ARGUMENTS:
            yield from (str(name.arg) for name in node.keywords if name.arg in NEWER_ARGUMENTS)
        elif isinstance(node, ast.Attribute) and node.attr in NEWER_METHODS:
            yield node.attr
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name in NEWER_MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in NEWER_MODULES:
            yield str(node.module)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_it_is_python_3_6(path: Path) -> None:
    assert list(newer(ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 6)))) == []


@pytest.mark.parametrize(
    "source",
    [
        "from __future__ import annotations",
        "import subprocess\nsubprocess.run([], capture_output=True)",
        "import subprocess\nsubprocess.run([], text=True)",
        "'a'.removeprefix('b')",
    ],
)
def test_a_name_newer_than_python_3_6_is_detected(source: str) -> None:
    assert list(newer(ast.parse(source, feature_version=(3, 6))))


def test_newer_syntax_is_refused() -> None:
    with pytest.raises(SyntaxError):
        ast.parse("(a := 1)", feature_version=(3, 6))


def test_every_helper_is_listed_after_the_modules_that_it_imports() -> None:
    entry_points = {path.stem for path in (REMOTE / "login").glob("*.py")} - {
        "__init__",
        "boot",
        "http_errors",
        "hub_access",
    }
    assert set(helpers.MODULES) == entry_points
    for name, modules in helpers.MODULES.items():
        assert modules[-1] == f"login.{name}"
        for place, module in enumerate(modules):
            assert imported(module) <= set(modules[:place]), f"{name}: {module}"


def imported(module: str) -> set[str]:
    """The package's modules that one of them imports."""
    tree = ast.parse((REMOTE / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    full = {str(node.module) for node in found}
    full |= {f"{node.module}.{name.name}" for node in found for name in node.names}
    ours = {
        name.removeprefix(f"{helpers.PACKAGE}.") for name in full if name.startswith(f"{helpers.PACKAGE}.")
    }
    return {name for name in ours if (REMOTE / f"{name.replace('.', '/')}.py").is_file()}


def run(helper: str, request: dict[str, Any], *, path: Path, more: bytes = b"") -> bytes:
    """Run a helper as on a login node: by the machine's own Python, without site packages or this repository."""
    python, *arguments = helpers.argv("/usr/bin/python3")
    done = subprocess.run(
        [python, "-S", *arguments],
        input=helpers.first_line(helper, request) + more,
        env={"PATH": f"{path}:/usr/bin:/bin"},
        cwd="/",
        capture_output=True,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


def test_files_in_the_home_directory_and_pythons_variables_do_not_replace_its_modules(tmp_path: Path) -> None:
    for name in ("types", "tempfile", "queue"):
        (tmp_path / f"{name}.py").write_text("print('my homework')\n")
    request, answer = requests(tmp_path)["slurm_command"]
    done = subprocess.run(
        helpers.argv("/usr/bin/python3"),
        input=helpers.first_line("slurm_command", encode(request)),
        env={"PATH": "/usr/bin:/bin", "PYTHONHOME": "/opt/python2.7", "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
    )
    assert json.loads(done.stdout) == encode(answer), done.stderr


def requests(folder: Path) -> dict[str, tuple[Any, Any]]:
    """Helper -> a request that needs no Slurm, and its answer."""
    stage = StageRequest("f")
    attempt = str(folder / "stage" / "attempt-1")
    files: dict[str, Any] = {"files": {"a": "text"}, "binaries": {"b": "AAE="}, "secrets": {"c": "secret"}}
    budget = RateBudget(f"{folder}/rpc_budget.json", 1, 60)
    job = ActiveJob("7", "RUNNING", f"{folder}/job", OWNER._asdict())
    return {
        "slurm_command": (CommandRequest(["echo", "hello"], "", budget), CommandAnswer(0, "hello\n")),
        "stage_result": (ResultRequest(attempt, stage), ResultAnswer()),
        "submit": (SubmitRequest(attempt, stage=stage, **files), SubmitAnswer(messages.PLACED)),
        "list_attempts": (AttemptsRequest(str(folder)), AttemptsAnswer()),
        "active_jobs": (ActiveRequest(str(folder)), ActiveAnswer([job])),
        "ray_request": (
            RayHttpRequest(str(folder), "GET", "/", None, 1.0),
            RayHttpAnswer(unreachable=f"{folder}/cluster.json is missing: the Ray cluster is not up"),
        ),
        "check_site": (
            CheckRequest(str(folder), {"/nowhere": "venv"}),
            ANY,
        ),
        "describe_site": (
            DescribeRequest([str(folder), "$NOWHERE", "/nowhere"], [f"{folder}/*.sh"]),
            ANY,
        ),
        "start_from": (
            StartRequest("start_from", "ppo", f"{folder}/dag/none", is_run=True),
            StartAnswer([f"start_from: the cluster has no run none in {folder}/dag (no run is there)"]),
        ),
        "old_runs": (
            OldRunsRequest(str(folder), f"{folder}/no", 10.0),
            OldRunsAnswer(problems=[f"{folder}/no is no directory of runs"]),
        ),
        "evidence": (evidence.request(evidence.LogLocation("c", "7", str(folder), ()), None), ANY),
    }


@pytest.mark.parametrize("helper", sorted(set(helpers.MODULES) - {"poll_jobs", "serve"}))
def test_a_bare_python_runs_it(helper: str, tmp_path: Path) -> None:
    squeue = tmp_path / "squeue"
    squeue.write_text(f"#!/bin/sh\necho '7|llmb-a|RUNNING|{tmp_path}/job'\n")
    squeue.chmod(0o755)
    attempt_dir.write_json(f"{tmp_path}/job/{attempt_dir.OWNER}", OWNER)
    request, answer = requests(tmp_path)[helper]
    values = json.loads(run(helper, encode(request), path=tmp_path))
    assert values == (answer if answer is ANY else encode(answer))
    if helper == "check_site":
        wrong = [f["detail"] for f in values["findings"] if f["result"] == messages.ERROR]
        assert wrong == ["venv: /nowhere cannot be read on the login node: No such file or directory"]
    if helper == "describe_site":
        assert [each["path"] for each in values["folders"]] == [str(tmp_path)]
    if helper == "submit":
        attempt = tmp_path / "stage" / "attempt-1"
        assert (attempt / "a").read_text() == "text" and (attempt / "b").read_bytes() == b"\0\1"
        assert (attempt / attempt_dir.SECRETS / "c").stat().st_mode & 0o777 == 0o600


def test_a_bare_python_serves_the_calls_of_several_helpers(tmp_path: Path) -> None:
    wanted, sent, lines = {}, set(helpers.modules("serve")), b""
    (tmp_path / "squeue").write_text("#!/bin/sh\n")
    (tmp_path / "squeue").chmod(0o755)
    all_requests = requests(tmp_path) | {"active_jobs": (ActiveRequest(str(tmp_path)), ActiveAnswer())}
    for number, helper in enumerate(sorted(helpers.SERVED), 1):
        request, wanted[number] = all_requests[helper]
        new = {name: text for name, text in helpers.modules(helper).items() if name not in sent}
        sent |= set(new)
        call = HelperCall(number, helper, encode(request), new)
        lines += json.dumps(encode(call)).encode() + b"\n"
    output, answers = run("serve", {}, path=tmp_path, more=lines), {}
    while output:
        size = int(output[:8])
        answered = decode(HelperAnswer, json.loads(output[8 : 8 + size]))
        answers[answered.id] = answered.answer or answered.error
        output = output[8 + size :]
    assert answers.pop(0) == ""
    assert answers == {number: encode(answer) for number, answer in wanted.items()}


def test_a_bare_python_answers_line_by_line(tmp_path: Path) -> None:
    (tmp_path / attempt_dir.OUTPUT).write_text("one\n")
    poll = PollRequest([JobQuery("7", str(tmp_path), log=LogQuery(0, 100, 100))])
    line = json.dumps(encode(poll)).encode() + b"\n"
    output = run("poll_jobs", {}, path=tmp_path, more=line * 2)
    size = int(output[:8])
    assert len(output) == 2 * (8 + size)
    answer = decode(PollAnswer, json.loads(output[8 : 8 + size]))
    assert answer.jobs == [JobNews("7", {}, base64.b64encode(b"one\n").decode(), size=4)]
