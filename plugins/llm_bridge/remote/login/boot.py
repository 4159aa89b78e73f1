"""Run one of the helpers in this package on the login node, without installing anything there.

This text is the program (``python3 -c``). The first line of standard input is JSON: ``{"modules": {dotted name:
source}, "main": name, "request": ...}``, with each module after those that it imports. The return value of
``main(request)`` is printed as JSON. A helper that keeps running (poll_jobs.py) reads further lines itself and returns
None.

Python 3.6 syntax, standard library only, as in all helpers.
"""

import json
import sys
import types
from typing import Dict, Optional


def load(modules: Dict[str, str]) -> None:
    """Load modules, each after those that it imports: dotted name -> source."""
    for dotted, source in modules.items():
        parent: Optional[types.ModuleType] = None
        # Packages first: "from llm_bridge.remote import attempt_dir" imports each of them.
        for end in [n for n, sign in enumerate(dotted) if sign == "."] + [len(dotted)]:
            module = sys.modules.setdefault(dotted[:end], types.ModuleType(dotted[:end]))
            if parent is not None:
                setattr(parent, dotted[:end].rpartition(".")[2], module)
            parent = module
        exec(compile(source, dotted, "exec"), sys.modules[dotted].__dict__)


asked = json.loads(sys.stdin.readline())
load(asked["modules"])
answer = sys.modules[asked["main"]].main(asked["request"])
if answer is not None:
    print(json.dumps(answer))
