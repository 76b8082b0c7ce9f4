#!/usr/bin/env python3
"""Evaluates a Gemma 3 GGUF in float64 with numpy: the weights are what the blocks decode to, nothing else is rounded.

This is the yardstick for engines that quantize activations: the distance to it is their arithmetic's error alone.
Token ids come from a file (BOS included by whoever wrote it); logits go out as raw float32 [tokens, vocab], streamed.
"""
import argparse
from pathlib import Path

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize

LOCAL_ROPE_BASE = 10000.0  # of the sliding layers, when the file names none
WINDOW_PATTERN = 6         # every sixth layer attends to everything


class Model:
    def __init__(self, path):
        self.reader = GGUFReader(str(path))
        self.tensors = {t.name: t for t in self.reader.tensors}
        arch = self.meta("general.architecture")
        if arch != "gemma3":
            raise SystemExit(f"architecture {arch}, expected gemma3")
        self.layers = self.meta("gemma3.block_count")
        self.width = self.meta("gemma3.embedding_length")
        self.heads = self.meta("gemma3.attention.head_count")
        self.kv_heads = self.meta("gemma3.attention.head_count_kv")
        self.head_dim = self.meta("gemma3.attention.key_length")
        self.window = self.meta("gemma3.attention.sliding_window")
        self.eps = self.meta("gemma3.attention.layer_norm_rms_epsilon")
        self.rope_base = self.meta("gemma3.rope.freq_base")
        self.local_base = self.meta("gemma3.rope.freq_base_swa", LOCAL_ROPE_BASE)

    def meta(self, key, default=None):
        field = self.reader.get_field(key)
        if field is None:
            if default is None:
                raise SystemExit(f"metadata {key} is missing")
            return default
        return field.contents()

    def weight(self, name, first=0, last=None):
        """Rows [first, last) of a tensor, decoded; decode works in float32, as the formats define it."""
        tensor = self.tensors[name + ".weight"]
        return dequantize(tensor.data[first:last], tensor.tensor_type).astype(np.float64)


def rms_norm(x, weight, eps):
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight


def rope(x, base):
    """Rotates the halves of every head; x is [tokens, heads, head_dim]."""
    half = x.shape[-1] // 2
    angle = np.arange(len(x))[:, None] * base ** (-np.arange(half) / half)[None, :]
    cos, sin = np.cos(angle)[:, None, :], np.sin(angle)[:, None, :]
    first, second = x[..., :half], x[..., half:]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def attention(model, x, layer):
    name = f"blk.{layer}."
    full = layer % WINDOW_PATTERN == WINDOW_PATTERN - 1
    base = model.rope_base if full else model.local_base
    n, d = len(x), model.head_dim
    q = (x @ model.weight(name + "attn_q").T).reshape(n, model.heads, d)
    k = (x @ model.weight(name + "attn_k").T).reshape(n, model.kv_heads, d)
    v = (x @ model.weight(name + "attn_v").T).reshape(n, model.kv_heads, d)
    q = rope(rms_norm(q, model.weight(name + "attn_q_norm"), model.eps), base) / np.sqrt(d)
    k = rope(rms_norm(k, model.weight(name + "attn_k_norm"), model.eps), base)
    distance = np.arange(n)[:, None] - np.arange(n)[None, :]
    visible = (distance >= 0) if full else (distance >= 0) & (distance < model.window)
    out = np.empty((n, model.heads, d))
    for head in range(model.heads):
        kv = head * model.kv_heads // model.heads
        score = np.where(visible, q[:, head] @ k[:, kv].T, -np.inf)
        score = np.exp(score - score.max(axis=1, keepdims=True))
        out[:, head] = (score / score.sum(axis=1, keepdims=True)) @ v[:, kv]
    return out.reshape(n, -1) @ model.weight(name + "attn_output").T


def feed_forward(model, x, layer):
    name = f"blk.{layer}."
    gate = x @ model.weight(name + "ffn_gate").T
    gate = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate ** 3)))
    return (gate * (x @ model.weight(name + "ffn_up").T)) @ model.weight(name + "ffn_down").T


def hidden_states(model, ids):
    table = model.tensors["token_embd.weight"]
    x = dequantize(table.data[ids], table.tensor_type).astype(np.float64) * np.sqrt(model.width)
    for layer in range(model.layers):
        name = f"blk.{layer}."
        y = attention(model, rms_norm(x, model.weight(name + "attn_norm"), model.eps), layer)
        x = x + rms_norm(y, model.weight(name + "post_attention_norm"), model.eps)
        y = feed_forward(model, rms_norm(x, model.weight(name + "ffn_norm"), model.eps), layer)
        x = x + rms_norm(y, model.weight(name + "post_ffw_norm"), model.eps)
    return rms_norm(x, model.weight("output_norm"), model.eps)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--ids", type=Path, required=True, help="token ids, separated by white space")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--slice", type=int, default=16384, help="vocabulary rows decoded at a time")
    parser.add_argument("--limit", type=int, help="only the first so many tokens")
    args = parser.parse_args()
    ids = np.array(args.ids.read_text().split(), dtype=np.int64)[:args.limit]
    model = Model(args.model)
    output = "output" if "output.weight" in model.tensors else "token_embd"
    vocab = len(model.tensors[output + ".weight"].data)
    hidden = hidden_states(model, ids)
    logits = np.memmap(args.out, dtype="<f4", mode="w+", shape=(len(ids), vocab))
    for first in range(0, vocab, args.slice):
        logits[:, first:first + args.slice] = hidden @ model.weight(output, first, first + args.slice).T
    logits.flush()
    print(f"{len(ids)} tokens, vocab {vocab}")


if __name__ == "__main__":
    main()
