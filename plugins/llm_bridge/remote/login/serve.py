"""Answer calls of other helpers until standard input ends, several at a time: no start of Python for each call.

Each further line of standard input is a HelperCall (``remote/messages.py``), and each answer a HelperAnswer after its
length in bytes as 8 digits, in the order in which the calls end. The first answer belongs to no call: it says that
calls are taken.

A call that has begun is completed although the connection breaks, as in a process of its own: whoever calls again finds
what it did.
"""

import json
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Dict

from llm_bridge.remote.messages import SERVED_AT_ONCE, HelperAnswer, HelperCall, decode, encode


def answer(call: HelperCall) -> HelperAnswer:
    """Run one call; an error becomes the answer."""
    try:
        helper = sys.modules["llm_bridge.remote.login." + call.helper]
        return HelperAnswer(call.id, helper.main(call.request))
    except Exception:
        return HelperAnswer(call.id, error=traceback.format_exc())


def load(modules: Dict[str, str]) -> None:
    """Load modules as those of the first line (boot.py, which is the program)."""
    sys.modules["__main__"].load(modules)


def main(request: Dict[str, Any]) -> None:
    """Answer each line of standard input until it ends."""
    output, writing = sys.stdout.buffer, threading.Lock()

    def write(answered: HelperAnswer) -> None:
        data = json.dumps(encode(answered)).encode()
        with writing:
            output.write(b"%08d" % len(data) + data)
            output.flush()

    write(HelperAnswer(0))
    with ThreadPoolExecutor(SERVED_AT_ONCE) as pool:
        for line in sys.stdin:
            call = decode(HelperCall, json.loads(line))
            try:
                load(call.modules)
            except Exception:  # Python is too old for it: nothing else shows the error
                write(HelperAnswer(call.id, error=traceback.format_exc()))
                continue
            pool.submit(lambda asked: write(answer(asked)), call)
