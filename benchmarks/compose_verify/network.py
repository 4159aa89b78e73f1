"""Save and restore of the network settings that dockerd changes: forwarding, iptables, its bridge."""

from __future__ import annotations

import re
import shlex
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.compose_verify.command import VerifyError, output, succeeds

SETTINGS = (Path("/proc/sys/net/ipv4/ip_forward"), Path("/proc/sys/net/bridge/bridge-nf-call-iptables"))
BRIDGE = "docker0"


def rules() -> dict[str, dict[str, list[str]]]:
    """Return chains (`FORWARD ACCEPT`) and rules (`-A ...`) of each table, as iptables-save prints them."""
    found: dict[str, dict[str, list[str]]] = {}
    if not shutil.which("iptables-save"):
        return found
    table = ""
    for line in output(["iptables-save"]).splitlines():
        if line.startswith("*"):
            table = line[1:]
            found[table] = {"chains": [], "rules": []}
        elif line.startswith(":"):
            found[table]["chains"].append(" ".join(line[1:].split()[:2]))
        elif line.startswith("-A"):
            found[table]["rules"].append(line)
    return found


def settings() -> dict[str, str]:
    """Return the existing kernel settings by path."""
    return {str(path): path.read_text().strip() for path in SETTINGS if path.exists()}


@dataclass
class HostNetwork:
    """Network settings at the time of the object's creation."""

    settings: dict[str, str] = field(default_factory=settings)
    rules: dict[str, dict[str, list[str]]] = field(default_factory=rules)

    def restore(self) -> None:
        """Undo dockerd's changes; changes of other programs that dockerd does not touch stay.

        Raises:
            VerifyError: A kernel setting differs.
        """
        # The bridge first: its rules have no effect without it.
        if succeeds("ip", "link", "show", BRIDGE):
            output(["ip", "link", "delete", BRIDGE])
        for table, now in rules().items():
            before = self.rules.get(table, {"chains": [], "rules": []})
            for rule in now["rules"]:
                if rule not in before["rules"] and re.search(rf"\bDOCKER|\b{BRIDGE}\b", rule):
                    output(["iptables", "-t", table, "-D", *shlex.split(rule)[1:]])
            self._restore_chains(table, before["chains"], now["chains"])
        for path, value in self.settings.items():
            Path(path).write_text(value)
        if wrong := {path: now for path, now in settings().items() if now != self.settings.get(path, now)}:
            raise VerifyError(f"kernel settings are not as they were: {wrong}; before: {self.settings}")

    @staticmethod
    def _restore_chains(table: str, before: list[str], now: list[str]) -> None:
        known = dict(line.split() for line in before)
        new = [line.split()[0] for line in now if line.split()[0] not in known]
        for chain, policy in (line.split() for line in now):
            if policy == "-":
                continue
            # The chains of a table that did not exist accept everything.
            wanted = known.get(chain, "ACCEPT")
            if policy != wanted:
                output(["iptables", "-t", table, "-P", chain, wanted])
        own = [chain for chain in new if chain.startswith("DOCKER")]
        for flag in ("-F", "-X"):
            for chain in own:
                output(["iptables", "-t", table, flag, chain])

    def as_dict(self) -> dict[str, object]:
        """Return the settings for the report."""
        policy = next(
            (
                c.split()[1]
                for c in self.rules.get("filter", {}).get("chains", [])
                if c.startswith("FORWARD ")
            ),
            "ACCEPT",
        )
        return {"forward_policy": policy, **{Path(p).name: v for p, v in self.settings.items()}}
