#!/usr/bin/env python3
"""Compares two logits files, raw float32 [tokens, vocab]: KL(A || B) per position in nats, and top-1 agreement.

A is the reference. With --ids (the token ids of the text) the perplexity of both is printed too. Memory stays small:
rows are read in slices.
"""
import argparse
import sys
from pathlib import Path

import numpy as np


def log_softmax(rows):
    rows = rows.astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    return rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))


def open_rows(path, vocab):
    size = path.stat().st_size
    if size == 0 or size % (4 * vocab):
        raise SystemExit(f"{path}: {size} bytes is no whole number of rows of {vocab} float32")
    return np.memmap(path, dtype="<f4", mode="r").reshape(-1, vocab)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", type=Path)
    parser.add_argument("b", type=Path)
    parser.add_argument("--vocab", type=int, required=True)
    parser.add_argument("--ids", type=Path)
    parser.add_argument("--slice", type=int, default=32, help="rows in memory at a time")
    parser.add_argument("--max-mean-kl", type=float, help="exit 1 above this")
    parser.add_argument("--min-top1", type=float, help="exit 1 below this (percent)")
    args = parser.parse_args()
    a, b = open_rows(args.a, args.vocab), open_rows(args.b, args.vocab)
    if a.shape != b.shape:
        raise SystemExit(f"shapes differ: {a.shape} and {b.shape}")
    ids = np.array(args.ids.read_text().split(), dtype=np.int64) if args.ids else None

    kl, same, largest, loss = [], 0, 0.0, np.zeros(2)
    for start in range(0, len(a), args.slice):
        rows_a, rows_b = a[start:start + args.slice], b[start:start + args.slice]
        if not (np.isfinite(rows_a).all() and np.isfinite(rows_b).all()):
            raise SystemExit(f"a logit is not finite at token {start} or up to {args.slice} after it")
        log_a, log_b = log_softmax(rows_a), log_softmax(rows_b)
        kl.append((np.exp(log_a) * (log_a - log_b)).sum(axis=1))
        same += int((rows_a.argmax(axis=1) == rows_b.argmax(axis=1)).sum())
        largest = max(largest, float(np.abs(rows_a - rows_b).max()))
        if ids is not None:
            target = ids[start + 1:start + 1 + len(log_a)]
            loss -= [log[np.arange(len(target)), target].sum() for log in (log_a, log_b)]
    kl = np.concatenate(kl)
    top1 = 100.0 * same / len(kl)
    print(f"tokens {len(kl)}  mean_kl {kl.mean():.4e}  median {np.median(kl):.4e}  p99 {np.quantile(kl, 0.99):.4e}  "
          f"max {kl.max():.4e}  top1 {top1:.2f} %  max_logit_diff {largest:.4g}")
    if ids is not None:
        perplexity = np.exp(loss / (len(ids) - 1))
        print(f"perplexity a {perplexity[0]:.4f}  b {perplexity[1]:.4f}")
    failed = (args.max_mean_kl is not None and kl.mean() > args.max_mean_kl) or \
             (args.min_top1 is not None and top1 < args.min_top1)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
