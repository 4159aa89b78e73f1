"""Command line: ``python -m llm_bridge COMMAND``."""

from __future__ import annotations

import argparse
import importlib
import os
import sys

# Command -> first line of its help; the module of the same name in llm_bridge/commands does the work.
COMMANDS = {
    "doctor": "check a cluster file end to end, and say what to do",
    "new-cluster": "write a cluster file from what the login node answers",
    "install-environment": "build the pinned environment of jobs on a cluster",
}


def main(argv: list[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: Arguments; those of the process by default.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(prog="python -m llm_bridge", description="Commands of llm-bridge.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    modules = {
        name: importlib.import_module(f"llm_bridge.commands.{name.replace('-', '_')}") for name in COMMANDS
    }
    for name, summary in COMMANDS.items():
        modules[name].add_arguments(
            commands.add_parser(name, help=summary, description=modules[name].__doc__)
        )
    args = parser.parse_args(argv)
    code: int = modules[args.command].main(args)
    return code


if __name__ == "__main__":
    # Airflow reads connections from its database only in processes that say that they may.
    os.environ.setdefault("_AIRFLOW_PROCESS_CONTEXT", "server")
    sys.exit(main())
