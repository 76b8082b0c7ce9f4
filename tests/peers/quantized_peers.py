#!/usr/bin/env python3
"""What qquant writes, read by others: compressed-tensors by its own decompression, GPTQ by GPTQModel, GGUF by llama.cpp.
Weights must be this engine's (qe_dequantize) bit for bit after one rounding to the type of the scales; perplexities within
0.5 %.

    python3 quantized_peers.py --qquant build/default/bin/qquant --qrun build/default/bin/qrun [--only compressed,gptq,gguf,transformers]
"""
import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from engine_weights import Checkpoint

TESTS = Path(__file__).resolve().parent.parent
MODEL = TESTS / "data" / "tiny-llama"
TEXT = TESTS / "data" / "heldout.txt"
COMPRESSED = ["w4a16-g128", "w4a16-g128-asym", "int8:g128:f16", "w8a8"]
GPTQ = [("w4a16-g128", "rtn"), ("w4a16-g128", "gptq"), ("w4a16-g128", "gptq-order"), ("w4a16-g128-asym", "rtn"),
        ("w4a16-g128-asym", "gptq-order"), ("w2a16-g64", "rtn"), ("w3a16-g64-asym", "rtn"), ("int8:g128:f16", "rtn")]


def quantize(args, folder, scheme, fmt, *more):
    name = "-".join([scheme, *more[1:2]])
    out = folder / f"{name}-{fmt}{'.gguf' if fmt == 'gguf' else ''}".replace(":", "_").replace("=", "_")
    if out.exists():
        return out
    subprocess.run([args.qquant, "--model", MODEL, "--scheme", scheme, "--format", fmt, "--out", out, "--quiet", *more], check=True)
    return out


def perplexity(args, path):
    text = subprocess.run([args.qrun, "-m", path, "--perplexity", TEXT, "--quiet"], check=True, capture_output=True, text=True).stdout
    return float(re.search(r"perplexity ([0-9.]+)", text).group(1))


def library_of(args):
    return args.engine or Path(args.qquant).resolve().parent.parent / "libqengine.so"


def windows(ids):
    """Those of qrun --perplexity: 512 tokens, BOS the first of each."""
    return [ids[:1] + ids[at:at + 511] for at in range(1, len(ids), 511)]


def check_compressed(args, folder):
    import torch
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig
    from safetensors.torch import load_file
    good = True
    for scheme in COMPRESSED:
        out = quantize(args, folder, scheme, "compressed-tensors")
        settings = json.loads((out / "config.json").read_text())["quantization_config"]
        config = QuantizationConfig.model_validate(settings)      # the schema of the package accepts our settings
        group = next(iter(config.config_groups.values()))
        tensors = load_file(out / "model.safetensors")
        compressor = BaseCompressor.load_from_registry(settings["format"])
        modules = sorted({name.rsplit(".", 1)[0] for name in tensors if name.endswith(".weight_scale")})
        equal = bool(modules)
        with Checkpoint(library_of(args), out) as ours:
            for module in modules:
                state = {name.rsplit(".", 1)[1]: value for name, value in tensors.items() if name.rsplit(".", 1)[0] == module}
                if hasattr(compressor, "decompress_weight"):
                    theirs = compressor.decompress_weight(dict(state), quantization_args=group.weights)
                else:
                    theirs = compressor.decompress(dict(state), group)["weight"]
                equal &= torch.equal(theirs, torch.from_numpy(ours.floats(f"{module}.weight")).to(theirs.dtype))
        good &= equal
        print(f"compressed-tensors {scheme}: {len(modules)} linears {'equal' if equal else 'DIFFER'}")
    return good


def check_transformers(args, folder):
    """The whole model in transformers. Its int8 inputs are scaled by absmax / 127.5, here by absmax / 127. Zero points are
    left to check_compressed(): compressed-tensors 0.20.0 forgets to pack them where a model is laid out without memory, so
    that transformers refuses every asymmetric packed checkpoint for the shape of its zero points."""
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM
    good = True
    for scheme in ["w4a16-g128", "int8:g128:f16", "w8a8"]:
        out = quantize(args, folder, scheme, "compressed-tensors")
        model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
        ids = Tokenizer.from_file(str(out / "tokenizer.json")).encode(TEXT.read_text(encoding="utf-8")).ids
        total, scored = 0.0, 0
        with torch.no_grad():
            for window in windows(ids):
                window = torch.tensor([window])
                log = model(input_ids=window).logits[0].double().log_softmax(-1)
                total -= log[:-1].gather(1, window[0, 1:, None]).sum().item()
                scored += window.shape[1] - 1
        theirs, ours = float(np.exp(total / scored)), perplexity(args, out)
        close = abs(ours / theirs - 1) < 0.005
        good &= close
        print(f"transformers {scheme}: {theirs:.4f}, here {ours:.4f} over {scored} tokens ({100 * (ours / theirs - 1):+.3f} %)"
              f" {'close' if close else 'APART'}")
    return good


def check_gptq(args, folder):
    """The whole model in GPTQModel, which unpacks every linear itself."""
    import torch
    from gptqmodel import BACKEND, GPTQModel
    good = True
    for scheme, method in GPTQ:
        more = ["--method", method, "--calib", TESTS / "data" / "calib.txt", "--calib-sequences", "8"] if method != "rtn" else []
        out = quantize(args, folder, scheme, "gptq", *more)
        model = GPTQModel.load(str(out), backend=BACKEND.GPTQ_TORCH, device="cpu", dtype=torch.float16).model
        linears = [(name, layer) for name, layer in model.named_modules() if hasattr(layer, "qweight")]
        with Checkpoint(library_of(args), out) as ours:
            equal = bool(linears)
            for name, layer in linears:
                theirs = layer.dequantize_weight().T
                equal &= torch.equal(theirs, torch.from_numpy(ours.floats(f"{name}.weight")).to(theirs.dtype))
        good &= equal
        print(f"GPTQModel {scheme} {method}: {len(linears)} linears {'equal' if equal else 'DIFFER'}")
    return good


def check_gguf(args, folder):
    from llama_cpp import Llama
    good = True
    for scheme in ["q4_0", "q8_0", "q4_k", "q6_k"]:
        out = quantize(args, folder, scheme, "gguf")
        llama = Llama(str(out), n_ctx=512, n_threads=2, logits_all=True, verbose=False)
        ids = llama.tokenize(TEXT.read_bytes(), add_bos=True, special=False)
        total, scored = 0.0, 0
        for window in windows(ids):
            llama.reset()
            llama.eval(window)
            logits = np.array(llama.scores[:len(window)], dtype=np.float64)
            top = logits.max(1, keepdims=True)
            log_sum = top[:, 0] + np.log(np.exp(logits - top).sum(1))
            total += float((log_sum[:-1] - logits[np.arange(len(window) - 1), window[1:]]).sum())
            scored += len(window) - 1
        theirs, ours = float(np.exp(total / scored)), perplexity(args, out)
        close = abs(ours / theirs - 1) < 0.005
        good &= close
        print(f"gguf {scheme}: llama.cpp {theirs:.4f}, here {ours:.4f} over {scored} tokens ({100 * (ours / theirs - 1):+.3f} %)"
              f" {'close' if close else 'APART'}")
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--qquant", required=True)
    parser.add_argument("--qrun", required=True)
    parser.add_argument("--engine", help="libqengine.so (beside the folder of qquant)")
    parser.add_argument("--only", default="compressed,gptq,gguf,transformers")
    args = parser.parse_args()
    checks = {"compressed": check_compressed, "gptq": check_gptq, "gguf": check_gguf,
              "transformers": check_transformers}
    with tempfile.TemporaryDirectory() as folder:
        results = [checks[name](args, Path(folder)) for name in args.only.split(",")]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
