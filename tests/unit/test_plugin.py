"""The Airflow plugin."""

from __future__ import annotations

from llm_bridge.operators.links import RayDashboardLink, WandbLink
from llm_bridge.operators.ray import RayClusterOperator
from llm_bridge.operators.slurm import SlurmSubmitOperator
from llm_bridge.plugin import LlmBridgePlugin
from llm_bridge.sensors.ray import RayJobSensor
from llm_bridge.sensors.slurm import SlurmJobSensor


def test_the_plugin_registers_the_buttons_of_the_operators() -> None:
    assert LlmBridgePlugin.name == "llm_bridge"
    registered = {type(link) for link in LlmBridgePlugin.operator_extra_links}
    assert registered == {RayDashboardLink, WandbLink}
    assert [type(link) for link in RayClusterOperator.operator_extra_links] == [RayDashboardLink]
    assert [type(link) for link in RayJobSensor.operator_extra_links] == [RayDashboardLink, WandbLink]
    for waits in (SlurmSubmitOperator, SlurmJobSensor):
        assert [type(link) for link in waits.operator_extra_links] == [WandbLink]
