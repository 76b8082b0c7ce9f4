#!/usr/bin/env python3
"""Speed of qengine and of llama.cpp on one GGUF, interleaved: tokens a second of both and their ratio, as JSON.

A round runs `qbench model`, then llama.cpp with flash attention off and on; every figure is the median over the rounds,
and the peer's is the better of its two. Rates compare within one run only: the machine's clock and neighbors change.
llama.cpp samples nothing here (a fixed token is fed), qbench samples the most likely token.

Build the peer for this CPU: CMAKE_ARGS=-DGGML_NATIVE=ON pip install llama-cpp-python==0.3.36 --no-binary :all:
"""
import argparse
import ctypes
import json
import statistics
import subprocess
import tempfile
import time

import llama_cpp as lc


def load(path):
    lc.llama_backend_init()
    params = lc.llama_model_default_params()
    params.n_gpu_layers = 0
    model = lc.llama_model_load_from_file(path.encode(), params)
    if not model:
        raise SystemExit(f"{path}: llama.cpp cannot open it")
    return model


def open_context(model, args, flash):
    params = lc.llama_context_default_params()
    params.n_ctx = args.prompt + args.gen
    params.n_batch = params.n_ubatch = max(args.prompt, 32)
    params.n_threads = params.n_threads_batch = args.threads
    params.flash_attn_type = 1 if flash else 0
    context = lc.llama_init_from_model(model, params)
    if not context:
        raise SystemExit(f"no llama.cpp context (flash attention {'on' if flash else 'off'})")
    return context


def decode(context, ids):
    tokens = (lc.llama_token * len(ids))(*ids)
    if lc.llama_decode(context, lc.llama_batch_get_one(tokens, len(ids))) != 0:
        raise SystemExit("llama.cpp: decode failed")
    lc.llama_synchronize(context)


def peer_round(context, ids, gen):
    """(prefill, decode) in tokens a second; logits of the last position, as qbench asks for them."""
    lc.llama_memory_clear(lc.llama_get_memory(context), False)
    begin = time.perf_counter()
    decode(context, ids)
    middle = time.perf_counter()
    for _ in range(gen):
        decode(context, ids[:1])
    return len(ids) / (middle - begin), gen / (time.perf_counter() - middle)


def our_round(args):
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        command = [args.qbench, "model", "-m", args.model, "--prompt", str(args.prompt), "--gen", str(args.gen),
                   "--threads", str(args.threads), "--json", out.name]
        run = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if run.returncode:
            raise SystemExit(run.stderr.strip() or f"{args.qbench}: exit {run.returncode}")
        result = json.loads(out.readline())
    return result["prefill_tok_s"], result["decode_tok_s"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="GGUF")
    parser.add_argument("--qbench", default="build/default/bin/qbench")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--gen", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if min(args.prompt, args.gen, args.threads, args.rounds) < 1:
        parser.error("counts are at least 1")

    quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
    lc.llama_log_set(quiet, ctypes.c_void_p(0))
    model = load(args.model)
    vocab = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(model))
    ids = [(i * 7919 + 13) % vocab for i in range(args.prompt)]
    contexts = {"flash_off": open_context(model, args, False), "flash_on": open_context(model, args, True)}
    for context in contexts.values():
        peer_round(context, ids, 2)     # pages of the model come in
    rates = {"qengine": [], **{name: [] for name in contexts}}
    for _ in range(args.rounds):
        rates["qengine"].append(our_round(args))
        for name, context in contexts.items():
            rates[name].append(peer_round(context, ids, args.gen))

    result = {"kind": "peer", "peer": "llama-cpp-python " + lc.__version__, "model": args.model.rsplit("/", 1)[-1],
              "threads": args.threads, "prompt": args.prompt, "gen": args.gen, "rounds": args.rounds}
    for i, phase in enumerate(("prefill", "decode")):
        medians = {name: statistics.median(rate[i] for rate in taken) for name, taken in rates.items()}
        ours, best = medians.pop("qengine"), max(medians.values())
        result |= {f"{phase}_tok_s": round(ours, 1), f"{phase}_ratio": round(ours / best, 3)}
        result |= {f"peer_{phase}_{name}": round(rate, 1) for name, rate in medians.items()}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
