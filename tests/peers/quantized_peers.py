#!/usr/bin/env python3
"""What qquant writes, read by others: compressed-tensors by its own decompression, GPTQ by the published formula, GGUF by
llama.cpp. Weights must be equal bit for bit to scale * (code - zero point); perplexities within 0.5 %.

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

TESTS = Path(__file__).resolve().parent.parent
MODEL = TESTS / "data" / "tiny-llama"
TEXT = TESTS / "data" / "heldout.txt"


def quantize(args, folder, scheme, fmt, *more):
    out = folder / f"{scheme}-{fmt}{'.gguf' if fmt == 'gguf' else ''}".replace(":", "_").replace("=", "_")
    if out.exists():
        return out
    subprocess.run([args.qquant, "--model", MODEL, "--scheme", scheme, "--format", fmt, "--out", out, "--quiet", *more], check=True)
    return out


def perplexity(args, path):
    text = subprocess.run([args.qrun, "-m", path, "--perplexity", TEXT, "--quiet"], check=True, capture_output=True, text=True).stdout
    return float(re.search(r"perplexity ([0-9.]+)", text).group(1))


def fields(words, bits, count):
    """Codes from little-endian words, LSB first, along the last axis."""
    stream = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=-1, bitorder="little")
    stream = stream[..., :count * bits].reshape(*stream.shape[:-1], count, bits)
    return (stream * (1 << np.arange(bits))).sum(-1)


def check_compressed(args, folder):
    import torch
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig
    from safetensors.torch import load_file
    good = True
    for scheme in ["w4a16-g128", "w4a16-g128-asym", "int8:g128:f16", "w8a8"]:
        out = quantize(args, folder, scheme, "compressed-tensors")
        settings = json.loads((out / "config.json").read_text())["quantization_config"]
        config = QuantizationConfig.model_validate(settings)      # the schema of the package accepts our settings
        group = next(iter(config.config_groups.values()))
        tensors = load_file(out / "model.safetensors")
        compressor = BaseCompressor.load_from_registry(settings["format"])
        modules = sorted({name.rsplit(".", 1)[0] for name in tensors if name.endswith(".weight_scale")})
        equal = bool(modules)
        for module in modules:
            state = {name.rsplit(".", 1)[1]: value for name, value in tensors.items() if name.rsplit(".", 1)[0] == module}
            if hasattr(compressor, "decompress_weight"):
                theirs = compressor.decompress_weight(dict(state), quantization_args=group.weights)
            else:
                theirs = compressor.decompress(dict(state), group)["weight"]
            equal &= torch.equal(theirs.float(), ours_compressed(state, group.weights).to(theirs.dtype).float())
        good &= equal
        print(f"compressed-tensors {scheme}: {len(modules)} linears {'equal' if equal else 'DIFFER'}")
    return good


def ours_compressed(state, weights):
    import torch
    scale = state["weight_scale"].float().numpy()
    if "weight_packed" in state:
        n, k = state["weight_shape"].tolist()
        bits = weights.num_bits
        codes = fields(state["weight_packed"].numpy(), bits, k).astype(np.float32)
        zero = np.float32(1 << (bits - 1))
        if "weight_zero_point" in state:
            zero = fields(np.ascontiguousarray(state["weight_zero_point"].numpy().T), bits, n).T.astype(np.float32)
            zero = np.repeat(zero, k // zero.shape[1], axis=1)
        return torch.from_numpy(np.repeat(scale, k // scale.shape[1], axis=1) * (codes - zero))
    return torch.from_numpy(scale * state["weight"].float().numpy())


def check_transformers(args, folder):
    """The whole model in transformers. Its int8 inputs are scaled by absmax / 127.5, here by absmax / 127."""
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM
    good = True
    for scheme in ["w4a16-g128", "w4a16-g128-asym", "w8a8"]:
        out = quantize(args, folder, scheme, "compressed-tensors")
        model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
        ids = Tokenizer.from_file(str(out / "tokenizer.json")).encode(TEXT.read_text(encoding="utf-8")).ids
        total, scored = 0.0, 0
        with torch.no_grad():
            for at in range(0, len(ids), 512):
                window = torch.tensor([ids[at:at + 512]])
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
    """The formula of GPTQModel's dequantize_weight, written out: scales[g_idx] * (q - z), version 1 stores z - 1."""
    from safetensors.numpy import load_file
    good = True
    for scheme in ["w4a16-g128", "w4a16-g128-asym", "int8:g128:f16"]:
        out = quantize(args, folder, scheme, "gptq")
        other = quantize(args, folder, scheme, "compressed-tensors")
        settings = json.loads((out / "config.json").read_text())["quantization_config"]
        bits, first = settings["bits"], settings["checkpoint_format"] == "gptq"
        tensors, reference = load_file(out / "model.safetensors"), load_file(other / "model.safetensors")
        modules = sorted(name[:-8] for name in tensors if name.endswith(".qweight"))
        equal = bool(modules)
        for module in modules:
            k = len(tensors[module + ".g_idx"])
            n = tensors[module + ".scales"].shape[1]
            codes = fields(np.ascontiguousarray(tensors[module + ".qweight"].T), bits, k)
            zeros = fields(tensors[module + ".qzeros"], bits, n) + first
            groups = tensors[module + ".g_idx"]
            weight = tensors[module + ".scales"].T.astype(np.float32)[:, groups] * (codes - zeros.T[:, groups]).astype(np.float32)
            import torch
            state = {key.rsplit(".", 1)[1]: torch.from_numpy(value) for key, value in reference.items() if key.rsplit(".", 1)[0] == module}
            args_like = argparse.Namespace(num_bits=bits)
            equal &= bool((weight == ours_compressed(state, args_like).numpy()).all())
        good &= equal
        print(f"gptq {scheme}: {len(modules)} linears {'equal' if equal else 'DIFFER'}")
    return good


def check_gguf(args, folder):
    from llama_cpp import Llama
    good = True
    for scheme in ["q4_0", "q8_0", "q4_k", "q6_k"]:
        out = quantize(args, folder, scheme, "gguf")
        llama = Llama(str(out), n_ctx=512, n_threads=2, logits_all=True, verbose=False)
        ids = llama.tokenize(TEXT.read_bytes(), add_bos=True, special=False)
        total, scored = 0.0, 0
        for at in range(0, len(ids), 512):
            window = ids[at:at + 512]
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
    parser.add_argument("--only", default="compressed,gptq,gguf,transformers")
    args = parser.parse_args()
    checks = {"compressed": check_compressed, "gptq": check_gptq, "gguf": check_gguf,
              "transformers": check_transformers}
    with tempfile.TemporaryDirectory() as folder:
        results = [checks[name](args, Path(folder)) for name in args.only.split(",")]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
