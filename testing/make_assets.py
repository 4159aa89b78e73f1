"""Make the demo's model and data set: a tiny Llama with random weights, and sums phrased as in GSM8K.

usage: make_assets.py --out DIR        (with the Python of the cluster's environment; a few seconds on a CPU)

DIR/tiny-llama   a model as on the Hub: config, tokenizer with Llama 3's special tokens, about 100,000 parameters
DIR/gsm8k-tiny   a data set laid out as openai/gsm8k: main/{train,test}-00000-of-00001.parquet with the columns
                 question and answer, and a README

The same arguments make the same files (seed 0). No package registry has GSM8K or a causal model.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

NAMES = ("Natalia", "Weng", "Betty", "Julie", "James", "Mark", "Albert", "Ken")
THINGS = ("clips", "apples", "books", "pencils", "cards", "cookies")

# Order matters: token ids follow it. Names as in Llama 3's tokenizer.
SPECIAL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|finetune_right_pad_id|>",
)
CHAT_TEMPLATE = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{- message['content'] | trim + '<|eot_id|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)

README = """---
license: mit
task_categories: [text-generation]
configs:
- config_name: main
  data_files:
  - {{split: train, path: main/train-*}}
  - {{split: test, path: main/test-*}}
---
# gsm8k-tiny

{train} training and {test} test questions made by llm-bridge's `testing/make_assets.py`, in the layout of
`openai/gsm8k`: sums of two numbers below ten. For trying a training pipeline, not for training a model.
"""


def sum_in_words(chance: random.Random, highest: int = 9) -> dict[str, str]:
    """Return one row: a question, and an answer that ends in ``#### NUMBER``.

    Args:
        chance: Chooses the row.
        highest: Highest number that is added.
    """
    name, thing = chance.choice(NAMES), chance.choice(THINGS)
    x, y = chance.randint(1, highest), chance.randint(1, highest)
    return {
        "question": f"{name} had {x} {thing} in April and got {y} more {thing} in May. "
        f"How many {thing} does {name} have altogether?",
        "answer": f"{name} had {x} {thing} and got {y} more, so {name} has "
        f"{x}+{y} = <<{x}+{y}={x + y}>>{x + y} {thing}.\n#### {x + y}",
    }


def make_data(directory: Path, train: int, test: int) -> list[dict[str, str]]:
    """Write the data set and return all rows.

    Args:
        directory: Destination.
        train: Number of training rows.
        test: Number of test rows, at least one batch: verl's SFT drops an incomplete batch.
    """
    import pandas

    chance = random.Random(0)
    rows = [sum_in_words(chance) for _ in range(train + test)]
    (directory / "main").mkdir(parents=True, exist_ok=True)
    for split, part in (("train", rows[:train]), ("test", rows[train:])):
        pandas.DataFrame(part).to_parquet(directory / "main" / f"{split}-00000-of-00001.parquet")
    (directory / "README.md").write_text(README.format(train=train, test=test))
    return rows


def make_model(directory: Path, texts: list[str]) -> int:
    """Write a Llama with random weights and a byte-level tokenizer trained on ``texts``.

    Returns:
        The number of parameters.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    plain = Tokenizer(models.BPE())
    # One token per digit, similar to Llama's tokenizers: "12" is two tokens.
    plain.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    plain.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    plain.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=512, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain,
        bos_token=SPECIAL[0],
        eos_token=SPECIAL[4],
        pad_token=SPECIAL[5],
        model_max_length=1024,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(directory)

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.save_pretrained(directory)
    # safetensors writes 0600; jobs run as another user
    (directory / "model.safetensors").chmod(0o644)
    return model.num_parameters()


def main() -> None:
    """Make the data set and the model, and print their sizes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="destination; created if missing"
    )
    parser.add_argument("--train", type=int, default=64, help="training rows (64)")
    parser.add_argument("--test", type=int, default=16, help="test rows (16)")
    given = parser.parse_args()
    data, model = given.out / "gsm8k-tiny", given.out / "tiny-llama"
    rows = make_data(data, given.train, given.test)
    size = make_model(model, [text for row in rows for text in row.values()])
    print(f"{data}: {given.train} training and {given.test} test rows\n{model}: {size} parameters")


if __name__ == "__main__":
    main()
