#!/usr/bin/env python3
"""Checks the GGUF form of the tiny Llama: llama.cpp and `transformers` agree on ids, logits and greedy text."""
import argparse
import sys
from pathlib import Path

import numpy as np

TESTS = Path(__file__).resolve().parent.parent
PROMPTS = ["In the beginning", "Yahweh said to Moses,", "A hacker is someone who", "Jesus answered them,"]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gguf", required=True)
    parser.add_argument("--model", default=str(TESTS / "data" / "tiny-llama"))
    parser.add_argument("--new-tokens", type=int, default=48)
    args = parser.parse_args()
    import torch
    from llama_cpp import Llama
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM
    tokenizer = Tokenizer.from_file(args.model + "/tokenizer.json")
    theirs = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    llama = Llama(args.gguf, n_ctx=512, n_threads=2, logits_all=True, verbose=False)
    good = True
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt).ids
        same_ids = llama.tokenize(prompt.encode(), add_bos=True, special=False) == ids
        prompt_len = len(ids)
        with torch.no_grad():
            full = theirs.generate(torch.tensor([ids]), max_new_tokens=args.new_tokens, do_sample=False)[0].tolist()
            logits = theirs(input_ids=torch.tensor([full])).logits[0].numpy()
        llama.reset()
        llama.eval(full)
        peer = np.array(llama.scores[:len(full)])
        # A greedy choice may differ only where the two best logits are closer than the peers' distance.
        difference = float(np.abs(peer - logits).max())
        margin = np.sort(logits, axis=1)[:, -1] - np.sort(logits, axis=1)[:, -2]
        clash = (peer.argmax(1) != logits.argmax(1)) & (margin > 2 * difference)
        same_text = peer.argmax(1)[prompt_len - 1:-1].tolist() == full[prompt_len:]
        good &= same_ids and not clash.any() and difference < 0.1
        print(f"ids {'same' if same_ids else 'DIFFER'}, greedy {'same' if same_text else 'differs'}, "
              f"max logit difference {difference:.5f}: {tokenizer.decode(full)!r}")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
