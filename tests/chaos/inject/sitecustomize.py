"""Kill a task's process at a chosen line of llm-bridge. Python imports this by itself at start (PYTHONPATH).

$CHAOS_PLANS/RUN.json says what to do in that run's task: {"step": line, "after": seconds, "supervisor": bool}. Steps
are the lines of FILES that run from SlurmSubmission.submit on: when it comes to that line, the process dies, at once or
a moment later, together with its supervisor if so wished. The plan is used up by that (RUN.died). A plan without a step
has the steps written to RUN.steps.
"""

import json
import os
import signal
import sys
import threading
from pathlib import Path

PLANS = Path(os.environ.get("CHAOS_PLANS") or "/nonexistent")
# The coroutine that submits, and what runs between intent and id.
FIRST = ("/llm_bridge/slurm/submission.py", "submit")
FILES = (
    *("/llm_bridge/operators/slurm.py", "/llm_bridge/operators/base.py"),
    *("/llm_bridge/slurm/", "/llm_bridge/remote/"),
)


def die(supervisor):
    """As if the machine were gone."""
    if supervisor:
        os.kill(os.getppid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


class Tracer:
    """Looks for a line in one process."""

    def __init__(self):
        self.plan = None
        self.run = ""
        self.dying = False

    def call(self, frame, event, argument):
        """Python calls it for every function that begins, and when a coroutine resumes."""
        code = frame.f_code
        if not any(part in code.co_filename for part in FILES):
            return None
        if self.plan is None and code.co_filename.endswith(FIRST[0]) and code.co_name == FIRST[1]:
            self.run = frame.f_locals["self"].task.run_id
            try:
                self.plan = json.loads((PLANS / f"{self.run}.json").read_text())
            except FileNotFoundError:
                sys.settrace(None)
        return self.line if self.plan is not None else None

    def line(self, frame, event, argument):
        """And this for every line."""
        if event != "line":
            return self.line
        here = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}\n"
        if "step" not in self.plan:
            with (PLANS / f"{self.run}.steps").open("a") as file:
                file.write(here)
        elif self.plan["step"] == here.strip() and not self.dying:
            self.dying = True
            (PLANS / f"{self.run}.json").unlink()
            (PLANS / f"{self.run}.died").write_text(here)
            if self.plan["after"]:
                threading.Timer(self.plan["after"], die, [self.plan["supervisor"]]).start()
            else:
                die(self.plan["supervisor"])
        return self.line


def in_child():
    """A task's process is a fork of its supervisor; no other process is traced."""
    if PLANS.is_dir() and any(PLANS.glob("*.json")):
        sys.settrace(Tracer().call)


os.register_at_fork(after_in_child=in_child)
