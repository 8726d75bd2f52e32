"""What do logits cost? Peak memory of one training step with logits of all positions, and of learned positions only.

    python tests/benchmarks/bench_logits.py [--tokens 8192] [--vocabulary 150000] [--learned 0.15]

One row, float32, a Llama of 2 layers of width 64 with tied embeddings, so that little but logits takes memory. Each arm is
a process of its own; its figure is the peak of its resident memory less what it held before the step (model and libraries):
`all` is transformers' own loss on labels, `learned` is the loss that arc_ray trains with, `none` stops at the hidden states.
The full logits need three times tokens x vocabulary x 4 bytes (logits, their log-softmax, their gradient), 14.7 GB at the
defaults; with less than that to spare, the benchmark refuses instead of taking the machine down.
"""

import argparse
import json
import resource
import subprocess
import sys
from typing import Any

import numpy as np
import psutil
import torch

ARMS = ("all", "learned", "none")
SPARE_BYTES = 2**31


def main() -> None:
    """Measure each arm in a process and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--vocabulary", type=int, default=150_000)
    parser.add_argument("--learned", type=float, default=0.15, help="share of the tokens that is learned")
    parser.add_argument("--arm", choices=ARMS, help="measure one arm in this process")
    arguments = parser.parse_args()
    if arguments.arm:
        print(json.dumps(measure(arguments.arm, arguments.tokens, arguments.vocabulary, arguments.learned)))
        return
    needed = 3 * arguments.tokens * arguments.vocabulary * 4 + SPARE_BYTES
    free = psutil.virtual_memory().available
    if free < needed:
        sys.exit(f"{free / 1e9:.1f} GB are free and the full logits need {needed / 1e9:.1f}: give fewer --tokens")
    found: dict[str, Any] = {}
    for arm in ARMS:
        command = [sys.executable, __file__, *sys.argv[1:], "--arm", arm]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[arm] = json.loads(done.stdout.splitlines()[-1])
        print(f"{arm:8} {found[arm]['bytes'] / 1e9:6.2f} GB  loss {found[arm]['loss']:.5f}")
    everything, learned = found["all"]["bytes"], found["learned"]["bytes"]
    print(f"learned positions only: {everything / learned:.1f} times less, {(everything - learned) / 1e9:.2f} GB saved")


def measure(arm: str, tokens: int, vocabulary: int, share: float) -> dict[str, float]:
    """Do one forward and backward pass; return the bytes it added to the peak of resident memory, and its loss."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from arc_ray.models.loss import LearnedLoss, inputs_of
    from arc_ray.rows.maker import IGNORED

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    model: Any = LlamaForCausalLM(
        LlamaConfig(vocab_size=vocabulary, max_position_embeddings=tokens, tie_word_embeddings=True, **sizes)
    )
    ids = torch.randint(vocabulary, (1, tokens))
    is_learned = torch.from_numpy(np.random.default_rng(0).random((1, tokens)) < share)
    is_learned[:, 0] = False  # nothing predicts the first token
    labels = torch.where(is_learned, ids, IGNORED)
    positions = torch.arange(tokens)[None]
    batch = {"input_ids": ids.numpy(), "position_ids": positions.numpy(), "labels": labels.numpy()}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    match arm:
        case "all":
            loss = model(input_ids=ids, position_ids=positions, labels=labels, use_cache=False).loss
        case "learned":
            loss = LearnedLoss(model)(**inputs_of(batch, torch.device("cpu")))[0].mean()
        case _:
            loss = model.get_decoder()(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state.mean()
    loss.backward()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"bytes": (peak - before) * 1024, "loss": float(loss)}


if __name__ == "__main__":
    main()
