"""Files in a model folder that must not be uploaded: secrets, a trainer's state, temporary files."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path
from typing import Optional

# Hidden files that belong to a Hub repository.
ALLOWED_HIDDEN = (".gitattributes",)

# Patterns for the lower-case name of a file or folder. A folder that matches is left out with all files in it.
SECRETS = """
*.env env netrc _netrc pypirc htpasswd pgpass kubeconfig passwd shadow airflow.cfg kaggle.json *.tfstate ssh
*.pem *.key *.p12 *.pfx *.pkcs12 *.jks *.keystore *.ppk *.kdbx *.gpg *.ovpn known_hosts authorized_keys
id_rsa* id_dsa* id_ecdsa* id_ed25519* *_rsa *_ed25519 *private[_-]key* *access[_-]key* *api[_-]key* *apikey*
token token.txt token.json *[_-]token *[_-]token.txt hf[_-]token.* stored_tokens wandb[_-]key* *credential* *password*
secret secrets secret.* secrets.* *[_-]secret.* *[_-]secrets.* client[_-]secret* service[_-]account*.json
"""
TRAINER_STATE = """
optimizer optimizer_[0-9]* optim*.pt optim*.pth optim*.bin optim*.ckpt optim*.safetensors optim*.pkl *optim_states*
*scheduler*.pt *scheduler*.pth *scheduler*.bin *scheduler*.pkl scaler.pt grad_scaler*.pt rng_state* random_states*
training_args.bin sampler*.bin dataloader*.pt custom_checkpoint_*.pkl *_world_size_*_rank_*.pt *mp_rank_*.pt *.distcp
data.pt data_[0-9]*.pt latest latest_checkpointed_iteration.txt lora_train_meta.json
"""
TEMPORARY = """
*.tmp *.temp *.swp *.swo *~ *.bak *.orig *.part *.partial *.incomplete *.lock
*.log *.out *.err *.pyc *.wandb *tfevents.* core core.[0-9]*
"""
# Patterns for folders only.
CHECKPOINTS = """
*checkpoint-[0-9]* *checkpoint_[0-9]* checkpoint checkpoints ckpt ckpts global_step*
step[_-][0-9]* epoch[_-][0-9]* iter[_-][0-9]*
"""
CACHES = """
cache *_cache *-cache __pycache__ wandb mlruns tensorboard lightning_logs logs tmp temp node_modules venv *.egg-info
"""

SECRET_CONTENT = re.compile(
    rb"(?P<a_private_key>-----BEGIN [A-Z0-9 ]*PRIVATE KEY|PuTTY-User-Key-File-)"
    # A token of only "x" is a placeholder, as in the README of many models.
    rb"|(?P<a_Hugging_Face_token>\b(?:hf|api_org)_(?![xX]+\b)[A-Za-z0-9]{20,})"
    rb"|(?P<an_API_key>\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36}|\bgithub_pat_\w{40,}|\bglpat-[\w-]{20}"
    rb"|\bsk-(?:proj-|ant-)?[A-Za-z0-9_-]{40,}|\bxox[abprs]-[0-9A-Za-z-]{20,}|\bAIza[\w-]{35}\b|\bwandb_v1_\w{20,})"
    rb"|(?P<a_key_or_password>(?m:^)[ \t]*(?:export[ \t]+)?(?:HF_TOKEN|HUGGING_?FACE_\w*TOKEN|WANDB_API_KEY"
    rb"|AWS_SECRET_ACCESS_KEY|OPENAI_API_KEY|ANTHROPIC_API_KEY|GITHUB_TOKEN)"
    rb"[ \t]*[=:][ \t]*[\"']?(?![\w-]*(?i:your|xxx|token|example))"
    rb"[A-Za-z0-9_/+-]{16,}"
    rb"|(?m:^)[ \t]*machine[ \t]+\S+\s+login[ \t]+\S+\s+password[ \t]+\S+)"
)
# Size up to which a file is searched for secrets. Text files are smaller: the largest tokenizer.json has about 35 MB.
MAX_TEXT_BYTES = 64_000_000


def exclusion_by_name(name: str, *, folder: bool) -> Optional[str]:
    """Return the reason why a file or folder of this name is not uploaded; None if it may be uploaded.

    Args:
        name: Name without its directory.
        folder: True for a folder, to which more patterns apply.
    """
    lower = name.lower()
    reasons = {
        "a secret by its name": SECRETS,
        "a trainer's state": TRAINER_STATE,
        "temporary, or a log": TEMPORARY,
    }
    if folder:
        reasons |= {"a trainer's checkpoints": CHECKPOINTS, "a cache or logs": CACHES}
    for reason, patterns in reasons.items():
        if any(fnmatch.fnmatchcase(lower, pattern) for pattern in patterns.split()):
            return reason
    return "hidden" if name.startswith(".") and name not in ALLOWED_HIDDEN else None


def exclusion_by_content(file: Path) -> Optional[str]:
    """Return the kind of secret that a file contains; None if none of a known form was found.

    Args:
        file: Path of the file; it is not searched if it is larger than ``MAX_TEXT_BYTES``. Of a safetensors file only
            the header is: the rest is numbers, in which the search takes seconds.
    """
    with file.open("rb") as opened:
        size = file.stat().st_size
        if file.suffix == ".safetensors":
            size = min(size, int.from_bytes(opened.read(8), "little"))
        if size > MAX_TEXT_BYTES:
            return None
        found = SECRET_CONTENT.search(opened.read(size))
    return f"holds {found.lastgroup.replace('_', ' ')}" if found and found.lastgroup else None
