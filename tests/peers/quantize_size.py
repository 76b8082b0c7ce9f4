#!/usr/bin/env python3
"""Time and peak memory of qquant on a model of TinyLlama 1.1B's shape with random FP16 weights (2.2 GB, written to --work
and deleted afterwards unless --keep).

    python3 quantize_size.py --bin build/default/bin --work DIR [--methods rtn,awq+rtn,gptq] [--layers N] [--sequences 32]

--layers N writes a model of N layers: time per layer, and the memory bound, need no more. The bound is what issue 5 asks for:
two layers' weights as floats, the calibration activations (residual stream and its update) and the widest layer's statistics.

--interrupt runs every method a second time, kills it (SIGKILL) at half of the first run's wall clock, checks that nothing stands
where the result is to be, goes on with --resume, and compares every file with the undisturbed run's.
Needs numpy.
"""
import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

DATA = Path(__file__).resolve().parents[1] / "data"
HIDDEN, FFN, HEADS, KV_HEADS, VOCAB, TOKENS = 2048, 5632, 32, 4, 32000, 512
LINEARS = {"self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (HIDDEN // HEADS * KV_HEADS, HIDDEN),
           "self_attn.v_proj": (HIDDEN // HEADS * KV_HEADS, HIDDEN), "self_attn.o_proj": (HIDDEN, HIDDEN),
           "mlp.gate_proj": (FFN, HIDDEN), "mlp.up_proj": (FFN, HIDDEN), "mlp.down_proj": (HIDDEN, FFN)}


def shapes(layers):
    out = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCAB, HIDDEN)}
    for i in range(layers):
        prefix = f"model.layers.{i}"
        out |= {f"{prefix}.{name}.weight": shape for name, shape in LINEARS.items()}
        out |= {f"{prefix}.{norm}_layernorm.weight": (HIDDEN,) for norm in ("input", "post_attention")}
    return out


def write_model(folder, layers):
    """Normal weights of deviation 0.02, a thirtieth of it for o and down as after training, norms of 1."""
    folder.mkdir(parents=True)
    config = json.loads((DATA / "tiny-llama/config.json").read_text())
    config |= {"hidden_size": HIDDEN, "intermediate_size": FFN, "num_hidden_layers": layers, "num_attention_heads": HEADS,
               "num_key_value_heads": KV_HEADS, "head_dim": HIDDEN // HEADS, "vocab_size": VOCAB,
               "max_position_embeddings": 2048}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DATA / "tiny-llama" / name, folder / name)
    header, at = {}, 0
    for name, shape in shapes(layers).items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random = np.random.default_rng(1)
    with (folder / "model.safetensors").open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes(layers).items():
            if len(shape) == 1:
                values = np.ones(shape, np.float32)
            else:
                scale = 0.02 / (30 ** 0.5 if "o_proj" in name or "down_proj" in name else 1)
                values = random.standard_normal(shape, np.float32) * scale
            out.write(values.astype(np.float16).tobytes())


def anonymous(pid):
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    return int(found.group(1)) << 10 if found else 0


def run(command, log, seconds=None):
    """Wall seconds, processor seconds (user and system), peaks of anonymous and of all resident memory (the model's file is
    mapped: what is resident of it can be dropped at any time). Killed after `seconds`, if given: then None."""
    began, peak = time.time(), 0
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            if seconds is not None and time.time() - began >= seconds:
                process.kill()
            peak = max(peak, anonymous(process.pid))
            time.sleep(0.02)
    process.returncode = os.waitstatus_to_exitcode(status)
    if seconds is not None and process.returncode == -signal.SIGKILL:
        return None
    if process.returncode:
        sys.exit(log.read_text())
    return time.time() - began, usage.ru_utime + usage.ru_stime, peak, usage.ru_maxrss << 10


def hashes(folder):
    out = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            out[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
    return out


def interrupt(command, out, log, wall, expected):
    """What is wrong with the result of a run that was killed halfway and resumed; None: nothing."""
    for _ in range(4):                    # a run that outpaced the kill says when half of it is
        ran = run(command, log, wall / 2)
        if ran is None:
            break
        wall = ran[0]
        shutil.rmtree(out)
    else:
        return "every run was over before the kill"
    partial = out.with_name(out.name + ".partial")
    if out.exists():
        shutil.rmtree(partial, ignore_errors=True)
        return f"a killed run left {out}"
    journal = partial / "journal"
    tensors = max(0, journal.read_bytes().count(b"\n") - 1) if journal.exists() else 0
    resumed = run(command + ["--resume"], log)[0]
    found = hashes(out)
    differ = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    print(f"  killed after {wall / 2:.1f} s with {tensors} tensors in the journal, nothing at the output's place, resumed in "
          f"{resumed:.1f} s: {len(found)} files, " + (f"different: {', '.join(differ)}" if differ else "all the same SHA-256"),
          flush=True)
    if not tensors:
        return "the kill came before the first tensor was in the journal: nothing was resumed"
    return "the resumed result differs" if differ else None


def bound(method, sequences):
    layer = 4 * sum(n * k for n, k in LINEARS.values())
    if method == "rtn":
        return 2 * layer
    tokens = TOKENS * sequences
    activations = 2 * 4 * tokens * HIDDEN
    statistics = 8 * (3 * HIDDEN ** 2 + FFN ** 2) if "gptq" in method else 0
    return 2 * layer + activations + statistics


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="a folder that is not there yet")
    parser.add_argument("--methods", default="rtn,awq+rtn,gptq")
    parser.add_argument("--scheme", default="w4a16-g128")
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--keep", action="store_true", help="leave the model in --work, or use the one there")
    parser.add_argument("--interrupt", action="store_true", help="kill and resume every method as well")
    args = parser.parse_args()
    model, bad = args.work / "model", []
    if not (args.keep and model.exists()):
        write_model(model, args.layers)
    text = (DATA / "calib.txt").read_text() + (DATA / "heldout.txt").read_text()
    (args.work / "calib.txt").write_text(text * (args.sequences * TOKENS * 8 // len(text) + 1))
    for method in args.methods.split(","):
        out = args.work / "out"
        command = [args.bin / "qquant", "--model", model, "--scheme", args.scheme, "--method", method, "--out", out, "--threads",
                   str(args.threads), "--quiet"]
        if method != "rtn":
            command += ["--calib", args.work / "calib.txt", "--calib-sequences", str(args.sequences)]
        command = [str(c) for c in command]
        wall, cpu, peak, resident = run(command, args.work / "log")
        limit = bound(method, args.sequences)
        print(f"{args.layers} layers  {args.scheme} {method}: {wall:.1f} s of wall clock on this machine as it was, {cpu:.1f} s of "
              f"processor time ({cpu / args.threads:.1f} s at best on {args.threads} idle cores); peak {peak >> 20} MiB of "
              f"{limit >> 20}, {resident >> 20} MiB resident with the mapped file", flush=True)
        if peak > limit:
            bad.append(f"{method} is over the memory bound")
        expected = hashes(out) if args.interrupt else None
        shutil.rmtree(out)
        if args.interrupt:
            wrong = interrupt(command, out, args.work / "log", wall, expected)
            if wrong:
                bad.append(f"{method}: {wrong}")
            shutil.rmtree(out, ignore_errors=True)
    if not args.keep:
        shutil.rmtree(args.work)
    if bad:
        sys.exit("; ".join(bad))


if __name__ == "__main__":
    main()
