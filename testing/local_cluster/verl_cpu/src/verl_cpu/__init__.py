"""verl 0.9.1 on CPUs, for llm-bridge's demo and tests only: real training needs GPUs.

verl ships platforms for NVIDIA, Huawei and AMD devices. This plugin adds, through verl's own registries:

* platform ``cpu`` (``platform.py``), chosen when no real accelerator is found;
* FSDP engines for device ``cpu`` (``engines.py``);
* ``actor_rollout_ref.rollout.name=hf`` (``hf_server.py``, ``hf_rollout.py``), because verl's own rollouts
  (vllm, sglang, trtllm) need a GPU;
* a process-group call that gloo accepts (``process_group.py``).

Importing it prints nothing and changes nothing on a machine with CUDA devices: there the platform is never
detected, and selecting it (``VERL_PLATFORM=cpu`` or ``rollout.name=hf``) raises an error.

verl logs a plugin that fails to import at DEBUG level only, so tests assert
``verl.plugin.platform.get_platform().device_name == "cpu"``.
"""

from verl_cpu import platform, process_group, when_imported

platform.register()
process_group.allow_gloo_on_cpu()
# These modules import most of verl, whose import is not finished at this point.
when_imported.call("verl.workers.engine.fsdp.transformer_impl", "verl_cpu.engines", "register")
when_imported.call("verl.workers.rollout.replica", "verl_cpu.hf_rollout", "register")
