"""Signatures of failures in logs: the only table of them, from which ``docs/troubleshooting.md`` is generated.

A signature is matched against one line at a time, after colours and the prefixes of srun, prefix_output.sh, Ray and
torchrun have been removed (``remote/login/evidence.py``, which runs with the ``re`` of Python 3.6). The earliest root
cause in a log decides; a *cascade* is a message of other ranks after one has failed, and counts only if nothing else
explains the failure. No signature may match the output of a run that succeeds: such a line comes first in the log and
would hide the cause (tests/unit/diagnosis/test_good_logs.py).

Excerpts are lines as the programs print them (torch 2.11 to 2.13, NCCL 2.2x, Slurm 22.05, hydra 1.3, Ray 2.60,
huggingface_hub 1.33 and 2.4, the NVIDIA driver's kernel module). ``must_not_match`` holds similar lines that indicate no
failure: advice, warnings, information. Tests check both (tests/unit/diagnosis/test_signatures.py).
"""

from __future__ import annotations

from typing import NamedTuple


class Signature(NamedTuple):
    """Regular expression that identifies one cause of failure in a line of a log.

    Attributes:
        id: Unique name.
        kind: Failure class, a key of :data:`~llm_bridge.diagnosis.classes.CLASSES`.
        seen: Regular expression; its group ``node``, if any, matches the node at fault.
        excerpt: A line that matches.
        must_not_match: A similar line that does not match.
        advice: Steps for the user that are more specific than those of the class; empty for those of the class.
        cascade: True if the line is usually a consequence of another failure.
    """

    id: str
    kind: str
    seen: str
    excerpt: str
    must_not_match: str
    advice: str = ""
    cascade: bool = False

    @property
    def of_speaker(self) -> bool:
        """True if the node that prints the line is at fault where ``seen`` names none.

        Lost nodes and connections are reported by the remaining nodes, which are sound and must not be excluded.
        """
        return self.kind not in ("network", "node_failure", "ray_bring_up")


S = Signature

TABLE: tuple[Signature, ...] = (
    # ---- NCCL, gloo and the network
    S("nccl_transport", "network",
      # Excludes what NCCL survives: an adapter that does not open, a changed GID table, a plugin for another network.
      r"(?P<node>[\w.-]+):\d+:\d+ \[\d+\] .*NCCL WARN (NET/.*(Got completion|completed with error|async fatal event)|"
      r"\w*[Cc]onnect|Call to (ibv_(modify|create|post|poll|reg|alloc)|connect|accept|recv|send|bind|poll)|socket)"
      r"(?!.*(unhandled|closed by remote peer|reset by peer|Broken pipe))",
      "gpu95:3468:3905 [4] transport/net_ib.cc:1615 NCCL WARN NET/IB : Got completion from peer 10.1.0.96<54862> with "
      "status=12 opcode=0 len=0 vendor err 129 (Recv)",
      "gpu95:3468:3905 [4] NCCL INFO NET/IB : Using [0]mlx5_0:1/IB [RO]; OOB eth0:10.1.0.95<0>"),
    S("nccl_peer", "network",
      r"NCCL WARN .*([Cc]losed by remote peer|[Cc]onnection reset by peer|Broken pipe)",
      "gpu95:3468:3905 [4] misc/socket.cc:484 NCCL WARN socketProgress: Connection closed by remote peer "
      "gpu96<51742>",
      "gpu95:3468:3905 [4] NCCL INFO [Service thread] Connection closed by localRank 4",
      cascade=True),
    S("nccl_no_interface", "bad_config",
      r"NCCL WARN Bootstrap : no socket interface found",
      "gpu95:983:983 [0] bootstrap.cc:45 NCCL WARN Bootstrap : no socket interface found",
      "gpu95:983:983 [0] NCCL INFO Bootstrap : Using eth0:10.1.0.95<0>",
      "The nodes have no interface of the name in network_interface of the cluster file; `ip -br addr` on a compute "
      "node lists its interfaces."),
    S("gloo_connect", "network",
      r"Gloo connectFullMesh failed with",
      "[rank1]: RuntimeError: Gloo connectFullMesh failed with [../third_party/gloo/gloo/transport/tcp/pair.cc:144] no "
      "error",
      "[rank1]:[W1125 10:02:11 ProcessGroupGloo.cpp:730] Warning: Unable to resolve hostname to a (local) address.",
      "Set network_interface in the cluster file: gloo chose an address that the other nodes cannot reach (127.0.1.1 "
      "in /etc/hosts is the usual cause)."),
    S("rendezvous_timeout", "network",
      r"DistNetworkError: The client socket has (timed out|failed to connect)",
      "torch.distributed.DistNetworkError: The client socket has timed out after 600000ms while trying to connect to "
      "(gpu95, 20123).",
      "[W1125 10:02:11.264 socket.cpp:752] [c10d] The client socket has failed to connect to [gpu95]:20123 (errno: 111 "
      "- Connection refused)."),
    S("preflight_network", "network",
      r"preflight: .*(all-reduce (over \d+ nodes( x \d+ GPUs?)? (did not end|failed)|is too slow: )|no connection with )",
      "[llm-bridge] error: preflight: gpu96: all-reduce over 2 nodes x 8 GPUs did not end within 120 s",
      "[llm-bridge] preflight: nccl all-reduce over 2 nodes x 8 GPUs: 27.1 GiB/s"),
    S("nccl_watchdog", "network",
      r"Watchdog caught collective operation timeout: WorkNCCL",
      "[rank3]:[E1125 10:27:21.426415540 ProcessGroupNCCL.cpp:629] [Rank 3] Watchdog caught collective operation "
      "timeout: WorkNCCL(SeqNum=64214, OpType=ALLGATHER, NumelIn=1, NumelOut=32, Timeout(ms)=600000) ran for 600081 "
      "milliseconds before timing out.",
      "[rank3]:[I1125 10:27:21 ProcessGroupNCCL.cpp:1196] [Rank 3] NCCL watchdog thread started!",
      cascade=True),
    S("nccl_remote", "network",
      r"^nccl(Remote|System)Error: |NCCL error: (remote process exited|unhandled system error)",
      "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.",
      "Set TORCH_NCCL_ASYNC_ERROR_HANDLING=1 to see ncclRemoteError where it happens.",
      cascade=True),
    S("gloo_peer", "network",
      r"gloo/transport/tcp/\w+\.cc:\d+\] .*(closed by peer|reset by peer|Timed out|timed out|Read error)",
      "RuntimeError: [../third_party/gloo/gloo/transport/tcp/pair.cc:525] Connection closed by peer [10.1.0.96]:41234",
      "[llm-bridge] connection closed by peer review",
      cascade=True),
    S("store_gone", "network",
      r"RendezvousConnectionError: |Dist(Network|Store)Error: (failed to recv|Connection|recvValue)",
      "torch.distributed.elastic.rendezvous.api.RendezvousConnectionError: The connection to the C10d store has failed. "
      "See inner exception for details.",
      "The node 'gpu95_1234_0' has failed to send a keep-alive heartbeat to the rendezvous '12-0'",
      cascade=True),
    # ---- Ray
    S("ray_not_joined", "ray_bring_up",
      r"\d+ of \d+ nodes did not join within",
      "[ray] error: 1 of 2 nodes did not join within 15 minutes: gpu96 (waits for the head)",
      "[ray] 1 of 2 nodes joined; waiting for gpu96"),
    S("ray_no_gcs", "ray_bring_up",
      r"^(\[.*\] )?(RuntimeError: |ConnectionError: )?(Failed to connect to GCS (at address|within)|Could not find any "
      r"running Ray instance)",
      "RuntimeError: Failed to connect to GCS at address 10.1.0.95:20311 within 60 seconds.",
      "[2026-11-25 10:00:00,000 I 12 12] gcs_rpc_client.h: Connected to GCS at address 10.1.0.95:20311"),
    S("ray_too_small", "ray_bring_up",
      r"no Ray cluster to train on: |the Ray cluster has \d+ such node\(s\)",
      "[llm-bridge] error: no Ray cluster to train on: Could not connect to the dashboard",
      "[llm-bridge] PPO: 29 steps an epoch, 435 steps on 2 node(s) x 8 GPU(s)"),
    S("ray_versions", "environment",
      r"RuntimeError: Version mismatch: The cluster was started with",
      "RuntimeError: Version mismatch: The cluster was started with:",
      "WARNING: Version mismatch of the tokenizer's files",
      "All nodes and the job must run Python and Ray from one environment: correct environment in the cluster file."),
    S("ray_node_dead", "node_failure",
      r"(node name: (?P<node>\S+) )?has been marked dead because the detector has missed too many heartbeats",
      "The node with node id: 5f2a01 and address: 10.1.0.96 and node name: gpu96 has been marked dead because the "
      "detector has missed too many heartbeats from it.",
      "The node with node id: 5f2a01 and address: 10.1.0.96 is alive"),
    S("ray_oom", "host_oom",
      r"killed due to the node running low on memory(\. Memory on the node \(IP: (?P<node>[\d.]+))?",
      "ray.exceptions.OutOfMemoryError: 1 worker(s) were killed due to the node running low on memory. Memory on the node "
      "(IP: 10.1.0.96, ID: 8696ae943f1c) was 1917.17GB used / 2015.54GB limit (0.951191)",
      "Set RAY_memory_monitor_refresh_ms=0 to disable worker killing on nodes that run low on memory."),
    S("ray_disk", "disk_full",
      r"OutOfDiskError: ",
      "ray.exceptions.OutOfDiskError: Local disk is full",
      "(raylet) file_system_monitor.cc:116: /tmp/ray/session_1 is over 95% full, available space: 3.2 GB; capacity: 894 "
      "GB. Object creation will fail if spilling is required.",
      "The node's local disk is full: set ray.temp_dir in the cluster file to a directory on a larger one."),
    S("ray_actor_died", "unknown",
      r"\b(ActorDiedError|ActorUnavailableError|WorkerCrashedError)\b|^The actor died unexpectedly before finishing",
      "ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this task.",
      "[2026-11-25 10:00:00,465 I 320 320] (gcs_server) gcs_actor_manager.cc:1515: Actor is failed on worker 1aa89a at node "
      "fd0ca6, need_reschedule = 0, death context type = ActorDiedErrorContext, remaining_restarts = 0",
      cascade=True),
    S("native_crash", "unknown",
      r"^!{7} Segfault encountered !{7}|^Fatal Python error: Segmentation fault",
      "!!!!!!! Segfault encountered !!!!!!!",
      "INFO:    segfault_handler: installed",
      "Compiled code crashed; the lines below name the functions. dlopen among them: a library was changed or replaced "
      "while the job ran, or packages do not fit together. Install nothing into an environment that jobs use: build it "
      "again (python -m llm_bridge install-environment CLUSTER)."),
    S("vllm_engine_ended", "unknown",
      r"^RuntimeError: Engine core initialization failed",
      "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
      "INFO 11-25 10:00:00 [core.py:217] init engine (profile, create kv cache, warmup model) took 14.65 seconds",
      "vLLM's engine process ended before it was ready, without an error of its own: it crashed or was killed. Read the "
      "log above this line, and the node's kernel log.",
      cascade=True),
    # ---- GPU memory
    S("torch_cuda_oom", "cuda_oom",
      r"CUDA out of memory\. Tried to allocate",
      "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 5.25 GiB. GPU 0 has a total capacity of 79.11 GiB of "
      "which 1.06 GiB is free.",
      "If reserved but unallocated memory is large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid "
      "fragmentation."),
    S("cuda_error_oom", "cuda_oom",
      r"CUDA error: out of memory|NCCL WARN Cuda failure( \d+)? 'out of memory'",
      "torch.AcceleratorError: CUDA error: out of memory",
      "For debugging consider passing CUDA_LAUNCH_BLOCKING=1"),
    S("vllm_memory", "cuda_oom",
      r"ValueError: (No available memory for the cache blocks|Free memory on device .* is less than desired GPU memory)",
      "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing "
      "the engine.",
      "INFO 11-25 10:00:00 [gpu_worker.py:298] Available KV cache memory: 41.20 GiB",
      "Change actor_rollout_ref.rollout.gpu_memory_utilization, vLLM's share of a GPU's memory: the models that are "
      "trained (the actor, and the critic of an algorithm that has one) must fit into the rest."),
    # ---- GPUs as requested
    S("no_gpu", "environment",
      r"RuntimeError: No CUDA GPUs are available|CUDA error: no CUDA-capable device is detected",
      "RuntimeError: No CUDA GPUs are available",
      "UserWarning: CUDA initialization: no CUDA runtime is found, using CUDA_HOME='/usr/local/cuda'",
      "The process sees no GPU: the container runs without --nv, CUDA_VISIBLE_DEVICES is empty, or the job requested no "
      "GPU (gpus_per_node, gpu_request in the cluster file)."),
    S("gpu_ordinal", "bad_config",
      r"CUDA error: invalid device ordinal",
      "torch.AcceleratorError: CUDA error: invalid device ordinal",
      "GPU device may be out of range, do you have enough GPUs?",
      "A node runs more processes than it has GPUs: correct gpus_per_node in the recipe or the cluster file."),
    S("nccl_duplicate", "bad_config",
      r"(NCCL WARN |^)Duplicate GPU detected : rank \d+ and rank",
      "[2026-11-26 02:29:39] gpu95:912:912 [0] init.cc:904 NCCL WARN Duplicate GPU detected : rank 0 and rank 1 both on "
      "CUDA device 60",
      "gpu95:912:912 [0] NCCL INFO comm 0x5581 rank 0 nranks 2 cudaDev 0 busId 60 - Init COMPLETE",
      "Two ranks share a GPU: correct gpus_per_node if a node runs more processes than it has GPUs, or remove a "
      "CUDA_VISIBLE_DEVICES that is set by hand."),
    S("device_assert", "bad_config",
      r"\.cuh?:\d+: .*[Aa]ssertion `.*` failed",
      "/pytorch/aten/src/ATen/native/cuda/Indexing.cu:1515: indexSelectSmallIndex: block: [0,0,0], thread: [0,0,0] "
      "Assertion `srcIndex < srcSelectDimSize` failed.",
      "Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.",
      "An index was out of range, most often a token id that the model's vocabulary does not have: use the tokenizer of "
      "base_model, and a checkpoint with the same vocabulary size."),
    S("illegal_access", "unknown",
      r"CUDA error: (an illegal memory access was encountered|misaligned address|unspecified launch failure)",
      "torch.AcceleratorError: CUDA error: an illegal memory access was encountered",
      "Search for `cudaErrorIllegalAddress' in https://docs.nvidia.com/cuda/cuda-runtime-api/ for more information.",
      "The cause is a bug in a kernel (flash-attention, vLLM, a custom op) or a failing GPU. If it happens on one node "
      "only, add that node to exclude in the cluster file."),
    # ---- GPU hardware
    S("xid", "gpu_hardware",
      r"((?P<node>[\w.-]+) kernel: .*)?NVRM: Xid \(PCI:[^)]*\): (48|62|64|74|79|94|95|110|119|120|140|143)\b",
      "Nov 25 10:12:13 gpu96 kernel: [81234.5] NVRM: Xid (PCI:0000:3b:00): 79, pid=4242, name=python3, GPU has fallen "
      "off the bus.",
      "Nov 25 10:12:13 gpu96 kernel: [81234.5] NVRM: Xid (PCI:0000:3b:00): 31, pid=4242, name=python3, Ch 00000008, MMU "
      "Fault"),
    S("gpu_lost", "gpu_hardware",
      r"GPU has fallen off the bus|: GPU is lost\.|Unable to determine the device handle for GPU",
      "Unable to determine the device handle for GPU 0000:3B:00.0: GPU is lost.  Reboot the system to recover this GPU",
      "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1d9f)"),
    S("ecc", "gpu_hardware",
      r"CUDA error: (uncorrectable ECC error encountered|uncorrectable NVLink error)|Error 802: system not yet init",
      "torch.AcceleratorError: CUDA error: uncorrectable ECC error encountered",
      "ECC errors: 0 volatile uncorrectable"),
    S("preflight_gpu", "gpu_hardware",
      r"preflight: (?P<node>[\w.-]+): (the driver shows \d+ of \d+ GPUs|nvidia-smi does not answer|"
      r"GPU \d+ (\(|of the job )|a small tensor on each GPU is not done)",
      "[llm-bridge] error: preflight: gpu96: the driver shows 7 of 8 GPUs",
      "[llm-bridge] preflight: 2 node(s) in order"),
    S("preflight_torch", "environment",
      r"preflight: .*(torch cannot use the GPUs: (ModuleNotFound|Import)Error|Torch not compiled with CUDA enabled)",
      "[llm-bridge] error: preflight: gpu96: CUDA has 0 of 8 GPUs: Torch not compiled with CUDA enabled",
      "[llm-bridge] preflight: 2 node(s) in order",
      "Install a torch with CUDA in the environment of the cluster file (requirements-cluster.txt)."),
    # ---- Slurm
    S("slurm_node", "node_failure",
      r"srun: error: Node failure on (?P<node>\S+)",
      "srun: error: Node failure on gpu96",
      "srun: -k, --no-kill  do not kill job on node failure"),
    S("slurm_node_cancel", "node_failure",
      r"CANCELLED AT \S+ DUE TO NODE FAILURE",
      "slurmstepd: error: *** STEP 4711.0 ON gpu95 CANCELLED AT 2026-11-25T10:00:00 DUE TO NODE FAILURE, SEE SLURMCTLD "
      "LOG FOR DETAILS ***",
      "slurmstepd: error: *** STEP 4711.0 ON gpu95 CANCELLED AT 2026-11-25T10:00:00 ***"),
    # slurmstepd prints a reason without "CANCELLED" where slurmctld aborts on a node a job that it has as pending
    # (22.05: job_mgr.c, "Registered PENDING"; slurmstepd/req.c), as after a crash that lost the job's start. Accounting
    # called such jobs FAILED in `make chaos`.
    S("slurm_forgot_start", "forgotten",
      r"^slurmstepd\S*: error: \*\*\* REASON: Nodes required for job are DOWN",
      "slurmstepd-n1: error: *** REASON: Nodes required for job are DOWN, DRAINED or reserved for jobs in higher "
      "priority partitions ***",
      "squeue: (Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions)"),
    S("slurm_preempted", "preempted",
      r"CANCELLED AT \S+ DUE TO (PREEMPTION|JOB REQUEUE)",
      "slurmstepd: error: *** JOB 4711 ON gpu95 CANCELLED AT 2026-11-25T10:00:00 DUE TO PREEMPTION ***",
      "Preemption mode of partition low: REQUEUE"),
    S("slurm_time_limit", "time_limit",
      r"CANCELLED AT \S+ DUE TO TIME LIMIT",
      "slurmstepd: error: *** JOB 4711 ON gpu95 CANCELLED AT 2026-11-25T10:00:00 DUE TO TIME LIMIT ***",
      "#SBATCH --time=60  # the time limit"),
    S("slurm_cancelled", "cancelled",
      r"\*\*\* JOB \d+ ON \S+ CANCELLED AT [\dT:-]+ \*\*\*",
      "slurmstepd: error: *** JOB 4711 ON gpu95 CANCELLED AT 2026-11-25T10:00:00 ***",
      "slurmstepd: error: *** STEP 4711.0 ON gpu95 CANCELLED AT 2026-11-25T10:00:00 ***",
      cascade=True),
    S("slurm_oom", "host_oom",
      r"[Dd]etected [1-9]\d* oom[_-]kill event|exceeded memory limit \(\d+ > \d+\), being killed|task \d+: Out Of Memory",
      "slurmstepd: error: Detected 1 oom_kill event in StepId=4711.0. Some of the step tasks have been OOM Killed.",
      "slurmstepd: memory: 12 oom_kill counters read"),
    S("shared_memory", "host_oom",
      r"DataLoader worker \(pid \d+\) is killed by signal: (Killed|Bus error)|insufficient shared memory \(shm\)",
      "RuntimeError: DataLoader worker (pid 4242) is killed by signal: Killed. ",
      "UserWarning: This DataLoader will create 16 worker processes in total."),
    S("python_memory", "host_oom",
      r"^MemoryError\b|ArrayMemoryError: Unable to allocate|DefaultCPUAllocator: can't allocate memory",
      "RuntimeError: [enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried "
      "to allocate 68719476736 bytes. Error code 12 (Cannot allocate memory)",
      "verl.utils.memory: MemoryError hooks are installed"),
    # ---- the cluster's environment
    S("module", "environment",
      r"Lmod has detected the following error|Unable to locate a modulefile for",
      "Lmod has detected the following error:  The following module(s) are unknown: \"cuda/12.9\"",
      "Lmod is automatically replacing \"gcc/12.2.0\" with \"gcc/13.2.0\"."),
    S("conda", "environment",
      r"EnvironmentNameNotFound: |EnvironmentLocationNotFound: |CondaError: Run 'conda init'",
      "EnvironmentNameNotFound: Could not find conda environment: llmbridge",
      "# conda environments:"),
    S("python_import", "environment",
      # Not the ImportError that Python itself may print as it exits, after "Exception ignored in".
      r"^(ModuleNotFoundError: No module named|ImportError: (?!sys\.meta_path is None))|"
      r"^\S+: \S+: version `\w+_[\d.]+' not found",
      "ModuleNotFoundError: No module named 'flash_attn'",
      "engine/__init__.py:69: UserWarning: megatron engine is not available: ModuleNotFoundError(\"No module named "
      "'megatron'\")"),
    S("command", "environment",
      # Not in a site's profile: it may use a command that a compute node lacks, and the job continues.
      r"^(?!/etc/|\S*/\.).*: line \d+: \S+: command not found$|execve\(\): .*: (No such file|Permission denied)|"
      r": line \d+: \S+/(activate|conda\.sh|modules\.sh): No such file",
      "/shared/run/sft/attempt-1/script.sh: line 88: torchrun: command not found",
      "hint: `command not found` means that the environment is wrong"),
    S("verl_missing", "environment",
      r"verl is not installed in this environment",
      "[llm-bridge] error: verl is not installed in this environment. Install requirements-cluster.txt there",
      "[llm-bridge] verl 0.9.1"),
    S("driver", "environment",
      # Not torch's warning on a node without a GPU: `UserWarning: CUDA initialization: The NVIDIA driver ...`
      r"^(?!.*Warning: ).*(driver on your system is too old|driver version is insufficient for CUDA|"
      r"no kernel image is available for exec)",
      "RuntimeError: The NVIDIA driver on your system is too old (found version 12020).",
      "NVIDIA-SMI 580.105.08   Driver Version: 580.105.08   CUDA Version: 13.0"),
    # ---- settings, paths, checkpoints, disks, tokens
    S("hydra", "bad_config",
      r"^(hydra\.errors\.\w+: |Could not override '|Error merging override |In '.*': Could not find ')|"
      r"verl refuses a setting of the recipe",
      "Could not override 'trainer.no_such'.",
      "Set the environment variable HYDRA_FULL_ERROR=1 for a complete stack trace."),
    S("omegaconf", "bad_config",
      r"^omegaconf\.errors\.\w+: ",
      "omegaconf.errors.ConfigAttributeError: Key 'no_such' is not in struct",
      "  File \"site-packages/omegaconf/errors.py\", line 12, in format_error",
      cascade=True),  # hydra's own line follows and has the complete key
    S("batch_shape", "bad_config",
      r"^AssertionError: real_train_batch_size .* must be divisible|is not a multiple of the \d+ processes",
      "AssertionError: real_train_batch_size (100) must be divisible by minimal possible batch size (16)",
      "[validate_config] All configuration checks passed successfully!"),
    S("micro_batch", "bad_config",
      r"^AssertionError: data size must be divisible by force_group_size \* micro_batch_size_per_gpu",
      "AssertionError: data size must be divisible by force_group_size * micro_batch_size_per_gpu",
      "[validate_config] All configuration checks passed successfully!",
      "A micro batch does not divide the rows that a GPU has of a batch: set *micro_batch_size_per_gpu to a divisor of "
      "them, or use_dynamic_bsz to true."),
    S("value_head", "environment",
      r"^RuntimeError: .*is not a value head model, please install trl",
      "RuntimeError: model(/models/x) is not a value head model, please install trl to make it valid",
      "engine/__init__.py:69: UserWarning: megatron engine is not available: ModuleNotFoundError(\"No module named "
      "'megatron'\")",
      "verl says so of every error with which the critic does not load. verl 0.9.1 loads it with flash_attention_2 "
      "whatever the recipe says: install flash-attn (requirements-cluster-vllm.txt), or choose an algorithm without a "
      "critic, such as ppo.algorithm grpo.",
      cascade=True),  # the error itself comes first in the traceback
    S("file", "missing_path",
      r"^(FileNotFoundError: \[Errno 2\]|PermissionError: \[Errno 13\]|NotADirectoryError: )|"
      r"^\S+: can't open file '",
      "FileNotFoundError: [Errno 2] No such file or directory: '/shared/data/gsm8k/train.parquet'",
      "WARNING: no tokenizer cache (FileNotFoundError: [Errno 2] No such file or directory: '/tmp/x'): made anew"),
    S("shell_file", "missing_path",
      r"^(cp|mv|tar): .*(No such file or directory|Permission denied)",
      "cp: cannot stat '/shared/data/train.parquet': No such file or directory",
      "ls: cannot access '/usr/local/cuda': No such file or directory",
      cascade=True),  # a script may continue
    S("model_path", "missing_path",
      r"is not a local folder and is not a valid model identifier|HFValidationError: Repo id must",
      "OSError: /shared/models/llama is not a local folder and is not a valid model identifier listed on "
      "'https://huggingface.co/models'",
      "Loading the model from the local folder /shared/models/llama"),
    S("data", "missing_path",
      r"cannot read the training data ",
      "[llm-bridge] error: cannot read the training data /shared/data/train.parquet: [Errno 2] No such file or directory. "
      "Run the prepare stage again.",
      "[llm-bridge] SFT: 7473 rows, 29 steps an epoch"),
    S("state_dict", "checkpoint_incompatible",
      r"Error\(s\) in loading state_dict for |size mismatch for .*: copying a param",
      "RuntimeError: Error(s) in loading state_dict for LlamaForCausalLM:",
      "Some weights of LlamaForCausalLM were newly initialized: ['score.weight']"),
    S("checkpoint_broken", "checkpoint_incompatible",
      r"PytorchStreamReader failed reading zip archive|SafetensorError: Error while deserializing header",
      "RuntimeError: PytorchStreamReader failed reading zip archive: failed finding central directory. This is an "
      "internal miniz error.",
      "[llm-bridge] the checkpoint of step 40 is incomplete (the job ended while it was written): not used"),
    S("world_size", "checkpoint_incompatible",
      r"was written by \d+ processes and this job has \d+",
      "[llm-bridge] error: /w/global_step_40 was written by 16 processes and this job has 8: verl can resume only with "
      "the same number.",
      "world_size 16"),
    S("no_space", "disk_full",
      r"No space left on device",
      "OSError: [Errno 28] No space left on device",
      "[llm-bridge] space left on device /shared: 812.4 GiB"),
    S("quota", "disk_full",
      r"Disk quota exceeded",
      "OSError: [Errno 122] Disk quota exceeded: '/shared/work/sft/checkpoints/global_step_40'",
      "Disk quotas for usr svc (uid 1001): 812G used, quota 1T, limit 1.1T",
      "The quota of the job's user or group is exhausted, although the disk has free space (check with `quota -s` or the "
      "file system's command, such as `lfs quota`): free space, keep fewer checkpoints (keep in the recipe), or raise the "
      "quota; then clear the task."),
    S("hub_quota", "disk_full",
      r"\b403 Forbidden: .*storage (limit|patterns)|the Hub at \S+ has no more room",
      "403 Forbidden: Private repository storage limit reached, please upgrade your plan to increase your private storage "
      "limit.",
      "Signed in to https://huggingface.co as alice with the token from the environment variable HF_TOKEN",
      "The account's storage on the Hub is full: free space there, upgrade its plan, or use a public repository or "
      "another owner (hub.repo_id); then clear the task."),
    S("torch_short_write", "disk_full",
      r"\[enforce fail at inline_container\.cc:\d+\] \. (unexpected pos|PytorchStreamWriter failed writing)",
      "RuntimeError: [enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598",
      "torch.save wrote 704 bytes at pos 598"),
    S("hub_token", "token_refused",
      # Not a server's log of its requests: `"GET /metrics HTTP/1.1" 403 Forbidden`.
      r"(GatedRepoError|RepositoryNotFoundError): 40[13] |Client error '40[13] |"
      r"(^|Error: )40[13] (Client Error|Unauthorized|Forbidden)\b(?!.*storage )|"
      r"the Hub at \S+ (refused the token|does not allow this token)|Invalid user token",
      "huggingface_hub.errors.GatedRepoError: 403 Client Error. (Request ID: Root=1-659fc3fa-30316)",
      "INFO: 127.0.0.1:4031 - \"GET /metrics HTTP/1.1\" 403 Forbidden"),
    S("wandb_token", "token_refused",
      r"W&B API: .*\(<Response \[40[13]\]>\)|wandb\.errors\.(errors\.)?AuthenticationError: ",
      "wandb: ERROR Error while calling W&B API: permission denied (<Response [403]>)",
      "[llm-bridge] Weights & Biases: no API key (wandb_conn_id of the cluster's file). Logging offline"),
    # wandb 0.31.0 prints no status code for a server that answers 401 or 403, but for a run that it may resume.
    S("wandb_refused", "token_refused",
      r"^wandb(: ERROR|\.errors\.(errors\.)?CommError:) "
      r"(user is not logged in|permission denied|.*(\(Error|returned error) 40[13]: )",
      "wandb.errors.errors.CommError: Failed to get resume status for run r-sft-0: returned error 401: {\"data\":null}",
      "Failed to export metrics batch code: 403, reason: Forbidden",
      "W&B refuses the API key, or the key may not write to the recipe's wandb_entity and project. Store a valid key in "
      "the connection wandb_conn_id of the cluster file, or remove wandb from the recipe's logger; then clear check and "
      "the task."),
    # ---- messages of other processes after one has failed
    S("killed", "unknown",
      r"exitcode\s*: -9 \(pid: \d+\)|srun: error: \S+: tasks? [\d,-]+: Killed|: line \d+: +\d+ Killed ",
      "  exitcode  : -9 (pid: 4242)",
      "exitcode  : 1 (pid: 4242)",
      "The process was killed by SIGKILL, most often by the kernel because memory ran out: compare MaxRSS with mem, and "
      "raise mem.",
      cascade=True),
    S("torchrun", "unknown",
      r"^torch\.distributed\.elastic\.multiprocessing\.errors\.ChildFailedError",
      "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: ",
      "  File \"errors/__init__.py\", line 355, in wrapper  # raises ChildFailedError",
      cascade=True),
    S("python", "unknown",
      r"^[A-Za-z_][\w.]*(Error|Exception): (?!sys\.meta_path is None).+",
      "ValueError: cannot convert float NaN to integer",
      "  raise ValueError(\"x\")  # ValueError: x",
      cascade=True),
)  # fmt: skip

BY_ID = {signature.id: signature for signature in TABLE}
