"""Descriptions of Slurm jobs."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from llm_bridge.config.cluster import Cluster
from llm_bridge.slurm.spec import Resources, SlurmJob


def cluster(**changes: Any) -> Cluster:
    return Cluster(**{"name": "c", "ssh_conn_id": "s", "workspace": "/w", "gpus_per_node": 8, **changes})


def job(**changes: Any) -> SlurmJob:
    return SlurmJob(**{"cluster": "c", "directory": "/w/d", "script": "#!/bin/bash\ntrue\n", **changes})


def test_the_jobs_own_resources_override_the_stages_and_the_clusters() -> None:
    site = cluster(
        partition="all", mem="1G", time_limit="10", stages={"sft": {"partition": "gpu", "mem": "2G"}}
    )
    asked = dict(job(stage="sft", resources=Resources(mem="3G")).resolve(site).directives)
    assert (asked["mem"], asked["partition"], asked["time"]) == ("3G", "gpu", "10")


def test_gpus_are_requested_with_the_option_of_the_site() -> None:
    two = job(resources=Resources(gpus_per_node=2))
    assert ("gpus-per-node", "2") in two.resolve(cluster()).directives
    assert ("gres", "gpu:2") in two.resolve(cluster(gpu_request="gres")).directives


def test_the_clusters_node_list_is_for_jobs_with_gpus_only() -> None:
    site = cluster(nodelist="gpu[94-95]")
    assert "nodelist" not in dict(job().resolve(site).directives)
    assert (
        dict(job(resources=Resources(gpus_per_node=8)).resolve(site).directives)["nodelist"] == "gpu[94-95]"
    )


# Option, as sbatch accepts it -> part of the reason.
REFUSED = {
    "array": "a job array is not supported",
    "arr": "a job array is not supported",
    "error": "standard error would be lost",
    "output": "llm-bridge reads the job's output from its own file",
    "open-mode": "must not truncate",
    "wrap": "the job's program is its script",
    "job-name": "finds its jobs by their names",
    "comment": "finds its jobs by it",
    "chdir": "runs in its attempt's directory",
    "clusters": "on another cluster",
    "wait": "the task waits for the job",
    "parsable": "to read the job's id",
    "test-only": "sbatch would submit no job",
}


@pytest.mark.parametrize(("option", "reason"), REFUSED.items())
def test_an_option_that_would_break_the_attempt_is_refused_everywhere_with_the_reason(
    option: str, reason: str
) -> None:
    for options in ({option: "x"}, {option: None}):
        for build in (
            lambda options: Resources(options=options),
            lambda options: cluster(options=options),
            lambda options: cluster(stages={"sft": {"options": options}}),
        ):
            with pytest.raises(ValidationError, match=reason):
                build(options)
    for directive in (f"--{option}=x", f"--{option} x", f"--nodes=1 --{option}=x  # a comment"):
        with pytest.raises(ValidationError, match=reason) as error:
            job(script=f"#!/bin/bash\n  # text\n#SBATCH {directive}\ntrue\n")
        assert f"#SBATCH {directive}" in str(error.value)


@pytest.mark.parametrize(
    ("directive", "reason"),
    [
        ("-a 0-3", "a job array is not supported"),
        ("-a0-3", "a job array is not supported"),
        ("-N1 -Ha 0-3", "a job array is not supported"),
        ("-e errors.txt", "standard error would be lost"),
        ("-o out.txt", "llm-bridge reads the job's output"),
        ("-D /tmp", "runs in its attempt's directory"),
        ("-J mine", "finds its jobs by their names"),
        ("-M other", "on another cluster"),
        ("-x n1", "it would replace the nodes that llm-bridge excludes"),
        ("--exclude=n1", "it would replace the nodes that llm-bridge excludes"),
        ("hetjob", "a heterogeneous job is not supported"),
        ("--mail-user='a", "No closing quotation"),
    ],
)
def test_a_directive_is_read_as_sbatch_reads_it(directive: str, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        job(script=f"#!/bin/bash\n#SBATCH {directive}\ntrue\n")


@pytest.mark.parametrize(
    "directive",
    [
        "-pa",
        "-N 2 -A e",
        "--account=o",
        "--exclusive",
        "--export=NONE",
        "-Ca",
        "-wn1",
        "--wait-all-nodes=1 # -a 3",
    ],
)
def test_other_directives_are_left_to_sbatch(directive: str) -> None:
    assert job(script=f"#!/bin/bash\n#SBATCH {directive}\n").user_directives == [f"#SBATCH {directive}"]


def options(site: dict[str, Any], resources: dict[str, Any] | None = None, stage: str | None = None) -> Any:
    return dict(job(stage=stage, resources=Resources(**resources or {})).resolve(cluster(**site)).directives)


def test_any_further_option_comes_from_the_cluster_the_stage_and_the_job() -> None:
    site = {
        "options": {"licenses": "a", "hint": "nomultithread", "mail-type": "FAIL"},
        "stages": {"sft": {"options": {"licenses": "b", "contiguous": None}}},
    }
    made = options(site, {"options": {"mail-type": "ALL"}}, "sft")
    assert (made["licenses"], made["hint"], made["mail-type"]) == ("b", "nomultithread", "ALL")
    assert "contiguous" in made and "contiguous" not in options(site)


def test_a_stage_may_differ_in_every_setting_and_null_takes_the_clusters_value_away() -> None:
    site = {
        "constraint": "h100",
        "reservation": "team",
        "mem": "0",
        "stages": {"prepare": {"constraint": None, "reservation": "cpu", "mem": None, "nodelist": "c1"}},
    }
    made = options(site, stage="prepare")
    assert "constraint" not in made and "mem" not in made
    assert (made["reservation"], made["nodelist"]) == ("cpu", "c1")
    assert options(site)["constraint"] == "h100"


@pytest.mark.parametrize(
    "constraint", ["a100&nvlink", "[a|b]", "(h100&ib)|a100", "[rack1*2&rack2*4]", "!old"]
)
def test_a_constraint_may_have_operators(constraint: str) -> None:
    assert options({"constraint": constraint})["constraint"] == constraint


def test_memory_is_requested_per_node_or_per_cpu_as_the_most_specific_setting_says() -> None:
    site = {"mem": "0", "stages": {"sft": {"mem_per_cpu": "4G"}}}
    assert options(site)["mem"] == "0"
    assert options(site, stage="sft")["mem-per-cpu"] == "4G" and "mem" not in options(site, stage="sft")
    made = options(site, {"mem": "1G"}, "sft")
    assert made["mem"] == "1G" and "mem-per-cpu" not in made
    with pytest.raises(ValidationError, match="not both"):
        cluster(mem="1G", mem_per_cpu="1G")


@pytest.mark.parametrize(
    ("site", "option", "value"),
    [
        ({"gpu_type": "a100"}, "gpus-per-node", "a100:8"),
        ({"gpu_type": "a100", "gpu_request": "gres"}, "gres", "gpu:a100:8"),
        ({"gpu_request": "gres", "options": {"gres": "lscratch:100"}}, "gres", "gpu:8,lscratch:100"),
        ({"options": {"gres": "lscratch:100"}}, "gres", "lscratch:100"),
        ({"gpu_request": "none"}, "exclusive", None),
    ],
)
def test_gpus_are_requested_by_type_by_gres_or_as_whole_nodes(
    site: dict[str, Any], option: str, value: str | None
) -> None:
    assert options(site, {"gpus_per_node": 8})[option] == value


def test_a_site_without_gres_gets_no_request_for_gpus() -> None:
    made = options({"gpu_request": "none", "gpu_type": "a100"}, {"gpus_per_node": 8})
    assert not {"gres", "gpus-per-node"} & set(made)
    assert "exclusive" not in options({"gpu_request": "none"})


def test_a_node_list_that_is_longer_than_the_job_is_explained() -> None:
    resolved = job(resources=Resources(gpus_per_node=8)).resolve(cluster(nodelist="gpu[94-95]"))
    [note] = resolved.notes
    assert "names 2 nodes, but the job has 1" in note and "use constraint" in note
    two = job(resources=Resources(gpus_per_node=8, nodes=2)).resolve(cluster(nodelist="gpu[94-95]"))
    assert not two.notes and not job().resolve(cluster(nodelist="gpu[94-95]")).notes


@pytest.mark.parametrize("value", ["a b", "$(id)", "x\n#SBATCH --uid=0", "é", '"'])
def test_an_option_value_that_would_need_quoting_is_refused(value: str) -> None:
    with pytest.raises(ValidationError):
        Resources(options={"licenses": value})


def test_a_script_without_an_interpreter_line_is_refused_before_sbatch_does() -> None:
    with pytest.raises(ValidationError, match="must begin with an interpreter line"):
        job(script="echo hi")


def test_a_job_without_a_source_or_with_two_is_refused() -> None:
    for source in ({"script": None}, {"template": "sft"}):
        with pytest.raises(ValidationError, match="give either template or script"):
            job(**source)
    with pytest.raises(ValidationError, match="without a folder"):
        job(script=None, template="../x")


def test_directives_are_read_up_to_the_first_command() -> None:
    script = "#!/bin/bash\n# text\n#SBATCH --mem=1G\n\ntrue\n#SBATCH --mem=2G\n"
    assert job(script=script).user_directives == ["#SBATCH --mem=1G"]


def test_a_dependency_is_added_to_the_options_of_the_job() -> None:
    behind = job(resources=Resources(options={"licenses": "a"})).resolve(cluster()).with_dependency("12")
    options = dict(behind.directives)
    assert (options["licenses"], options["dependency"]) == ("a", "afterok:12")
    assert options["kill-on-invalid-dep"] == "yes"


def test_excluded_nodes_are_added_to_those_of_the_job_or_of_the_cluster() -> None:
    site = cluster(exclude="n9")
    assert dict(job().resolve(site).excluding(["n1", "n2"]).directives)["exclude"] == "n9,n1,n2"
    own = job(resources=Resources(exclude="n8"))
    assert dict(own.resolve(site).excluding(["n1"]).directives)["exclude"] == "n8,n1"


def test_only_a_job_that_saves_is_signalled_before_its_time_limit() -> None:
    limit = Resources(time_limit="1:00:00")
    saves = job(resources=limit, signal_before_timeout=True).resolve(cluster())
    assert saves.warning_seconds == 1800
    assert ("signal", "B:USR1@1800") in saves.directives
    other = job(resources=limit).resolve(cluster())
    assert other.warning_seconds is None and "signal" not in dict(other.directives)


def test_an_option_without_a_value_is_a_flag() -> None:
    flags = job(resources=Resources(exclusive=True, options={"requeue": None})).resolve(cluster())
    assert ("exclusive", None) in flags.directives and ("requeue", None) in flags.directives


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"secrets": {"../script.sh": "x"}}, "a secret's name may have letters"),
        ({"script": "#!/bin/bash\n#SBATCH --array=1-3\ntrue\n"}, "a job array is not supported"),
        ({"script": "#!/bin/bash\n#SBATCH -a 1-3\ntrue\n"}, "a job array is not supported"),
        ({"resources": {"options": {"--licenses": "m"}}}, "without dashes"),
        ({"resources": {"options": {"nodes": "3"}}}, "use the key of the same name"),
        ({"resources": {"options": {"time": "99"}}}, "time_limit for time"),
    ],
)
def test_what_would_break_the_attempt_is_refused_before_it_is_submitted(
    changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValidationError, match=words):
        job(**changes)


def test_an_array_in_a_comment_after_the_first_command_is_not_a_directive() -> None:
    assert job(script="#!/bin/bash\ntrue\n#SBATCH --array=1-3\n").user_directives == []
