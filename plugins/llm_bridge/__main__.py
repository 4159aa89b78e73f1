"""Command line: ``python -m llm_bridge COMMAND``, where Airflow and llm-bridge are installed."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

# Command -> its module in llm_bridge.commands, with add_arguments(parser) and main(arguments).
COMMANDS = {"doctor": "doctor"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code.

    Args:
        argv: Arguments; those of the process by default.
    """
    # Connections are read from Airflow's database too, as its own commands do (airflow.sdk.execution_time.supervisor).
    os.environ.setdefault("_AIRFLOW_PROCESS_CONTEXT", "server")
    parser = argparse.ArgumentParser(prog="python -m llm_bridge", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    modules = {}
    for name, module in COMMANDS.items():
        modules[name] = importlib.import_module(f"llm_bridge.commands.{module}")
        text = (modules[name].__doc__ or "").splitlines()[0]
        modules[name].add_arguments(commands.add_parser(name, help=text, description=text))
    arguments = parser.parse_args(argv)
    code: int = modules[arguments.command].main(arguments)
    return code


if __name__ == "__main__":
    sys.exit(main())
