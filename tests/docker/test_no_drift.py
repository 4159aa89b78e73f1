"""docker-compose.yaml and the set-up without containers are one thing: same pins, packages, role scripts, templates."""

from __future__ import annotations

import json
import os
import re
import runpy
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_bridge.config.loader import check_model
from llm_bridge.notifications import Alerts
from testing.local_cluster.accounts import USERS
from testing.local_cluster.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = {name: ROOT / "docker" / name / "Dockerfile" for name in ("airflow", "cluster", "stores")}
VARIABLE = re.compile(r"\$\{([A-Z_]+)(?::([-?])([^}]*))?\}")
MAY_BE_EMPTY = {"COMPOSE_PROFILES", "LLM_BRIDGE_TORCH_INDEX"}
SETTING = re.compile(r"^([A-Z_]+)=(.*)$", re.MULTILINE)


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text("docker-compose.yaml"))["services"]
    return found


def dockerfile(name: str) -> str:
    """Its instructions, without comments, lines joined."""
    lines = [line for line in DOCKERFILES[name].read_text().splitlines() if not line.startswith("#")]
    return "\n".join(lines).replace("\\\n", " ")


def copied(name: str) -> list[str]:
    """What a Dockerfile takes out of the repository."""
    found = re.findall(r"^COPY (.+) \S+$", dockerfile(name), re.MULTILINE)
    return [source for line in found for source in line.split()]


def pins(name: str) -> dict[str, str]:
    """Package -> version of a file of requirements or constraints; empty where it names no version."""
    found = {}
    for line in text(name).splitlines():
        if match := re.match(r"([\w.-]+)(?:\[[\w,]+\])?(?:==(\S+))?\s*(?:#|$)", line):
            found[match[1].lower().replace("_", "-")] = match[2] or ""
    return found


# ---- same versions


def test_images_install_from_the_same_requirements_and_constraints_as_setup_sh():
    setup = text("setup.sh")
    for name, files in {
        "airflow": ("requirements.txt", "constraints/airflow.txt"),
        "cluster": ("plugins/llm_bridge/pins/requirements-cluster.txt", "constraints/cluster-cpu.txt"),
    }.items():
        for file in files:
            flag = "-r" if "requirements" in file else "-c"
            assert file in copied(name)
            assert re.search(rf"{flag} {re.escape(file)}\b", dockerfile(name)), f"{name} does not use {file}"
            assert re.search(rf"{flag} {re.escape(file)}\b", setup), f"setup.sh does not use {file}"


def test_what_only_containers_need_contradicts_no_pin_of_the_others():
    ours = pins("docker/airflow/constraints.txt")
    for file in ("constraints/airflow.txt", "requirements.txt", "requirements-dev.txt"):
        theirs = pins(file)
        assert {name: theirs[name] for name in ours.keys() & theirs.keys()} == {
            name: ours[name] for name in ours.keys() & theirs.keys()
        }, f"docker/airflow/constraints.txt and {file} differ"
    held = pins("constraints/airflow.txt") | ours
    wanted = pins("docker/airflow/requirements.txt")
    assert wanted.keys() <= held.keys(), "every package of docker/airflow/requirements.txt needs a pin"
    assert {n: v for n, v in wanted.items() if v} == {n: held[n] for n, v in wanted.items() if v}


def test_debian_packages_of_the_cluster_come_from_the_one_list():
    assert "testing/local_cluster/packages.txt" in text("setup.sh")
    assert "testing/local_cluster/packages.txt" in copied("cluster")
    assert re.search(r"packages\.txt\s*\|.*xargs apt-get install", dockerfile("cluster"))
    assert "apt-get install -y --no-install-recommends slurm" not in dockerfile("cluster")


@pytest.mark.parametrize("name", DOCKERFILES)
def test_images_build_from_plain_debian(name: str):
    assert re.findall(r"^FROM (.+)$", dockerfile(name), re.MULTILINE) == ["debian:bookworm-slim"]


def test_each_image_is_built_by_one_service():
    # A mirror's settings are given to that one (docs/production.md); a second would be built without them.
    built = [service["image"] for service in services().values() if "build" in service]
    assert sorted(built) == sorted({service["image"] for service in services().values()})


# ---- same cluster


def test_containers_run_the_same_role_scripts_and_render_the_same_templates():
    assert "testing" in copied("cluster")
    start = text("docker/cluster/start")
    assert 'exec "testing/local_cluster/roles/$role"' in start
    prepare = text("docker/cluster/prepare.py")
    assert "from testing.local_cluster.render import" in prepare and "render_slurm(" in prepare
    for role in {
        service["command"][0] for service in services().values() if "llm-bridge-cluster" in service["image"]
    }:
        assert role == "hub" or os.access(ROOT / "testing" / "local_cluster" / "roles" / role, os.X_OK)
    for program in ("slurmctld -D", "slurmd -D", "munged --foreground", "sshd_config <<"):
        for file in (ROOT / "docker").rglob("*"):
            assert not file.is_file() or program not in file.read_text(), f"{file} starts a daemon by itself"


def test_containers_make_the_slurm_conf_of_the_cluster_without_containers(tmp_path: Path):
    prepare = runpy.run_path(str(ROOT / "docker" / "cluster" / "prepare.py"))
    host = services()["n1"]["environment"]
    os.environ.update(NODES=host["NODES"], GPUS=host["GPUS"])
    try:
        settings = prepare["settings"]()
    finally:
        del os.environ["NODES"], os.environ["GPUS"]
    assert settings == Settings(), "a cluster in containers is the default cluster"


def test_hosts_have_the_names_and_addresses_of_the_cluster_without_containers():
    settings = Settings()
    wanted = {host: settings.address(host).rpartition(".")[2] for host in (*settings.host_names, "hub")}
    found = {}
    for name, service in services().items():
        if network := (service.get("networks") or {}).get("cluster"):
            assert service["hostname"] == name
            found[name] = VARIABLE.sub("", network["ipv4_address"]).strip(".")
    assert found == wanted
    listed = dict(line.split("=") for line in services()["n1"]["extra_hosts"])
    assert {host: VARIABLE.sub("", address).strip(".") for host, address in listed.items()} == wanted


def test_paths_of_the_local_cluster_file_are_those_of_the_containers():
    cluster = yaml.safe_load(text("include/clusters/local.yaml"))
    volume = next(v.split(":") for v in services()["n1"]["volumes"] if v.startswith("shared:"))
    assert cluster["workspace"] == f"{volume[1]}/workspace"
    assert f"CLUSTER_ENV={cluster['environment']['venv']}\n" in dockerfile("cluster")
    hub = cluster["variables"]["HF_ENDPOINT"]
    assert f"port={hub.rpartition(':')[2]} " in text("docker/cluster/hub")
    assert services()["hub"]["user"] == f"{USERS['svc']}:{USERS['svc']}"


# ---- settings


def test_every_variable_of_the_compose_file_is_explained_with_the_same_default():
    example = text(".env.example")
    explained = dict(SETTING.findall(example))
    used = VARIABLE.findall(text("docker-compose.yaml"))
    secrets = re.findall(r"\{environment: ([A-Z_]+)\}", text("docker-compose.yaml"))
    assert {name for name, *_ in used} | set(secrets) | {"COMPOSE_PROFILES"} == set(explained)
    for name, kind, default in used:
        if kind == "-":
            assert explained[name] == default, f"{name}: docker-compose.yaml and .env.example differ"
    for block in example.split("\n\n"):
        if SETTING.search(block):
            assert block.startswith("#"), f"no explanation above: {block}"


def test_no_secret_has_a_default():
    made = {name for name, value in SETTING.findall(text(".env.example")) if not value} - MAY_BE_EMPTY
    secrets = set(re.findall(r"\{environment: ([A-Z_]+)\}", text("docker-compose.yaml")))
    assert secrets <= made
    for name, kind, _ in VARIABLE.findall(text("docker-compose.yaml")):
        assert name not in secrets, f"{name} would be in a container's environment or arguments"
        assert name not in made or kind in ("?", ""), f"{name} has a default"


def make_env(folder: Path, *more: str) -> dict[str, str]:
    program = ROOT / "docker" / "make_env.py"
    argv = [sys.executable, str(program), "--file", str(folder / ".env"), "--set", f"SSH_DIR={folder}/ssh"]
    argv += ["--set", f"SSH_HOST_KEY_FILE={folder}/host_key", *more]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(SETTING.findall((folder / ".env").read_text()))


def test_made_settings_are_complete_private_and_kept(tmp_path: Path):
    first = make_env(tmp_path)
    assert {name for name, value in first.items() if not value} == MAY_BE_EMPTY
    for name in (".env", "ssh/id_svc", "host_key"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600, name
    key = (tmp_path / "ssh" / "id_svc").read_bytes()
    assert make_env(tmp_path, "--set", "SCHEDULERS=2") == {**first, "SCHEDULERS": "2"}
    assert (tmp_path / "ssh" / "id_svc").read_bytes() == key


def test_an_older_file_gets_what_is_new_and_keeps_every_line(tmp_path: Path):
    make_env(tmp_path)
    file = tmp_path / ".env"
    without = re.sub(r"^(NOFILE|MUNGE_KEY)=.*\n", "", file.read_text(), flags=re.MULTILINE)
    older = without.replace("WEB_PORT=8080", 'WEB_PORT="8081" # mine')
    file.write_text(older)
    found = make_env(tmp_path)
    assert file.read_text().startswith(older)
    assert found["WEB_PORT"] == '"8081" # mine' and found["NOFILE"] == "65536" and found["MUNGE_KEY"]
    new = file.read_text().removeprefix(older).strip().splitlines()
    assert new[0].startswith("#") and len([line for line in new if SETTING.match(line)]) == 2


def test_two_machines_have_no_secret_in_common(tmp_path: Path):
    first, second = make_env(tmp_path / "a"), make_env(tmp_path / "b")
    secrets = set(re.findall(r"\{environment: ([A-Z_]+)\}", text("docker-compose.yaml")))
    assert not {name for name in secrets if first[name] == second[name]}


def test_a_setting_that_does_not_exist_is_refused(tmp_path: Path):
    argv = [sys.executable, str(ROOT / "docker" / "make_env.py"), "--file", str(tmp_path / ".env")]
    done = subprocess.run([*argv, "--set", "SHEDULERS=2"], capture_output=True, text=True)
    assert done.returncode == 1 and "SHEDULERS" in done.stderr and not (tmp_path / ".env").exists()


def test_demo_connections_are_those_that_its_files_name(tmp_path: Path):
    connections = json.loads(make_env(tmp_path)["CONNECTIONS"].strip("'"))
    cluster = yaml.safe_load(text("include/clusters/local.yaml"))
    alerts = check_model(Alerts, yaml.safe_load(text("docker/mail/alerts.yaml")), "docker/mail/alerts.yaml")
    assert alerts.email is not None
    assert set(connections) == {cluster["ssh_conn_id"], cluster["hub"]["conn_id"], alerts.email.conn_id}
    assert {connections[cluster["ssh_conn_id"]]["host"], connections[alerts.email.conn_id]["host"]} <= set(
        services()
    )
    assert connections[cluster["ssh_conn_id"]]["login"] in USERS


# ---- safety


@pytest.mark.parametrize("name", services())
def test_no_container_is_privileged_or_runs_unlimited(name: str):
    service = services()[name]
    assert not service.get("privileged") and "ALL" in service["cap_drop"]
    assert "SYS_ADMIN" not in service.get("cap_add", [])
    assert service["deploy"]["resources"]["limits"]["memory"]
    assert service["restart"] in ("unless-stopped", "on-failure:3")
    assert name == "migrate" or service["healthcheck"]["test"]


def test_nothing_listens_beyond_this_machine_by_default():
    for name, service in services().items():
        for port in service.get("ports", []):
            assert port.startswith("${WEB_ADDRESS:-127.0.0.1}:"), name


def test_keys_and_configuration_are_mounted_read_only():
    for name in ("scheduler", "triggerer", "worker", "api-server", "dag-processor"):
        for volume in services()[name]["volumes"]:
            assert volume.startswith("logs:") or volume.endswith(":ro"), f"{name}: {volume}"


def test_a_triggerer_may_open_more_files_than_it_watches_tasks():
    defaults = dict(SETTING.findall(text(".env.example")))
    assert services()["triggerer"]["ulimits"]["nofile"]["soft"] == "${NOFILE:-65536}"
    assert int(defaults["NOFILE"]) > 2 * int(defaults["TRIGGERER_CAPACITY"])
