"""Ask a model of the Hub one question of the test data. Runs with the cluster's Python, which has transformers.

python demo/generate.py REPO_ID REVISION DATA_SET_DIR
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    """Print the question, the expected answer and the model's answer as JSON."""
    import pandas
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    repo_id, revision, data = sys.argv[1:]
    row = pandas.read_parquet(next(Path(data, "main").glob("test-*.parquet"))).iloc[0]
    tokenizer = AutoTokenizer.from_pretrained(repo_id, revision=revision)
    model = AutoModelForCausalLM.from_pretrained(repo_id, revision=revision)
    chat = [{"role": "user", "content": row["question"]}]
    prompt = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        tokens = model.generate(**prompt, max_new_tokens=48, do_sample=False)[
            0, prompt["input_ids"].shape[1] :
        ]
    answer = tokenizer.decode(tokens, skip_special_tokens=True)
    print(json.dumps({"question": row["question"], "expected": row["answer"], "answer": answer}))


if __name__ == "__main__":
    main()
