"""Run one of the helpers beside this file on the login node, without installing anything there.

This text is the program (``python3 -c``). The first line of standard input is JSON: ``{"modules": {name: source},
"main": name, "request": ...}``; the answer of ``main(request)`` goes to standard output as JSON. A helper
that stays (watch.py) reads further lines itself and returns None.

Python 3.6 is enough, as for all helpers; standard library only.
"""

import json
import sys
import types

asked = json.loads(sys.stdin.readline())
for name, source in asked["modules"].items():
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(compile(source, name + ".py", "exec"), module.__dict__)
answer = sys.modules[asked["main"]].main(asked["request"])
if answer is not None:
    print(json.dumps(answer))
