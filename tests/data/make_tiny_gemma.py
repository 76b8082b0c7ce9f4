#!/usr/bin/env python3
"""Writes tests/data/tiny-gemma3: a small Gemma 3 with random weights, every difference of the family in play.

Norm weights are far from zero, the sliding window (16) is shorter than the golden text (64 tokens), and layers of
both kinds occur. Run with the pinned versions of tests/peers/requirements.txt; the seed fixes the weights.
"""
import argparse
import json
from pathlib import Path

import train_tiny

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]


def make_model(vocab, seed):
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig
    torch.manual_seed(seed)
    model = Gemma3ForCausalLM(Gemma3TextConfig(
        vocab_size=vocab, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=1, head_dim=32, query_pre_attn_scalar=32, max_position_embeddings=256, sliding_window=16,
        layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
                         "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}},
        bos_token_id=2, eos_token_id=1, pad_token_id=0, tie_word_embeddings=True))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            spread = 0.3 if weight.dim() == 1 else (0.25 if "embed" in name else 1.5 / weight.shape[1] ** 0.5)
            weight.copy_(torch.randn(weight.shape) * spread)
    return model.bfloat16()


def main():
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=here / "tiny-gemma3")
    parser.add_argument("--vocab", type=int, default=512)
    parser.add_argument("--seed", type=int, default=3)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    texts = [(here / name).read_text(encoding="utf-8") for name in ("heldout.txt", "calib.txt")]
    tokenizer = train_tiny.train_tokenizer(texts, args.vocab, SPECIAL, "<bos>")
    tokenizer.save(str(args.out / "tokenizer.json"))
    make_model(args.vocab, args.seed).save_pretrained(args.out)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<bos>", "eos_token": "<eos>",
                "unk_token": "<unk>", "pad_token": "<pad>", "add_bos_token": True, "add_eos_token": False,
                "clean_up_tokenization_spaces": False, "model_max_length": 256}
    (args.out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


if __name__ == "__main__":
    main()
