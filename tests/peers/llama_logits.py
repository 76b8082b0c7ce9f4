#!/usr/bin/env python3
"""Writes the logits llama.cpp gives at every position of a text, as raw float32 [tokens, vocab].

The whole text is one sequence in one context, BOS first when the model's tokenizer asks for it; the ids go to
OUT with the suffix .ids. The logits stream out batch by batch.
"""
import argparse
import ctypes
from pathlib import Path

import llama_cpp as lc
import numpy as np


def tokenize(vocab, text):
    raw = text.encode("utf-8")
    room = (lc.llama_token * (len(raw) + 8))()
    count = lc.llama_tokenize(vocab, raw, len(raw), room, len(room), True, False)
    if count < 0:
        raise SystemExit("tokenization failed")
    return list(room[:count])


def open_context(args, n_tokens, model):
    params = lc.llama_context_default_params()
    params.n_ctx = (n_tokens + 255) // 256 * 256
    params.n_batch = params.n_ubatch = args.batch
    params.n_threads = params.n_threads_batch = args.threads
    if args.flash is not None:
        params.flash_attn_type = {"off": 0, "on": 1}[args.flash]
    context = lc.llama_init_from_model(model, params)
    if not context:
        raise SystemExit("no context")
    return context


def stream_logits(context, ids, vocab_size, batch_tokens, out):
    batch = lc.llama_batch_init(batch_tokens, 0, 1)
    for start in range(0, len(ids), batch_tokens):
        part = ids[start:start + batch_tokens]
        batch.n_tokens = len(part)
        for i, token in enumerate(part):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, start + i, 1
            batch.seq_id[i][0], batch.logits[i] = 0, 1
        if lc.llama_decode(context, batch) != 0:
            raise SystemExit(f"decode failed at token {start}")
        for i in range(len(part)):
            row = np.ctypeslib.as_array(lc.llama_get_logits_ith(context, i), shape=(vocab_size,))
            out.write(row.astype("<f4").tobytes())
    lc.llama_batch_free(batch)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", type=Path, help="UTF-8 text to tokenize")
    parser.add_argument("--ids-from", type=Path, help="take these ids instead of tokenizing a text")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--limit", type=int, help="only the first so many tokens")
    parser.add_argument("--flash", choices=["on", "off"], help="flash attention (default: llama.cpp's choice)")
    parser.add_argument("--no-repack", dest="repack", action="store_false",
                        help="llama.cpp's plain kernels instead of those over repacked weights")
    args = parser.parse_args()
    if (args.text is None) == (args.ids_from is None):
        parser.error("one of --text and --ids-from")

    quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
    lc.llama_log_set(quiet, ctypes.c_void_p(0))
    lc.llama_backend_init()
    model_params = lc.llama_model_default_params()
    model_params.n_gpu_layers = 0
    model_params.use_extra_bufts = args.repack
    model = lc.llama_model_load_from_file(args.model.encode(), model_params)
    if not model:
        raise SystemExit(f"{args.model}: llama.cpp cannot open it")
    vocab = lc.llama_model_get_vocab(model)
    vocab_size = lc.llama_vocab_n_tokens(vocab)
    if args.text:
        ids = tokenize(vocab, args.text.read_text(encoding="utf-8"))
    else:
        ids = [int(word) for word in args.ids_from.read_text().split()]
    ids = ids[:args.limit]
    args.out.with_suffix(".ids").write_text(" ".join(map(str, ids)) + "\n")
    context = open_context(args, len(ids), model)
    with open(args.out, "wb") as out:
        stream_logits(context, ids, vocab_size, args.batch, out)
    print(f"{len(ids)} tokens, vocab {vocab_size}")
    lc.llama_free(context)
    lc.llama_model_free(model)


if __name__ == "__main__":
    main()
