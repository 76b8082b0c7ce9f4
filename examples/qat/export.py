"""Writes a trained model in qengine's own checkpoint format, whose grid is the trainer's: what qrun computes with are the
weights of the last forward pass, bit for bit."""
import json
import shutil
import struct

import torch

NAMES = {"F32": torch.float32, "F16": torch.float16, "U8": torch.uint8}


def codes_of(linear):
    """The index of each weight's level, and the stored scale and zero."""
    spec, (scale, zero) = linear.scheme, linear.grid()
    group = spec.group or linear.weight.shape[1]
    s, z = (v.repeat_interleave(group, 1) for v in (scale, zero))
    q = torch.clamp(torch.round(linear.weight / s + z), spec.low, spec.high)
    assert torch.equal(s * (q - z), linear.quantized()), "the library rounds differently"
    bits = 1 if spec.quant.startswith("sign") else int(spec.quant[3])
    # Codes are unsigned; symmetric ones have their zero at 2^(bits-1), ternary ones at 1.
    return (q + {"int4": 8, "int2": 0, "sign": 0}[spec.quant[:4]] + (spec.low == -1)).to(torch.uint8), bits, scale * spec.step, zero


def pack(codes, bits):
    """Fields of `bits`, lowest first, rows in whole bytes (all widths here divide 8 and all rows fill their bytes)."""
    per = 8 // bits
    fields = codes.view(codes.shape[0], -1, per).int() << torch.arange(0, 8, bits, dtype=torch.int32)
    return fields.sum(2).to(torch.uint8)


def tensors_of(model):
    """Name -> tensor as stored, and module -> its entry in config.json."""
    tensors = {"model.embed_tokens.weight": model.embedding.half(), "model.norm.weight": model.norm.half(),
               "lm_head.weight": model.head.half()}
    weights = {}
    for i, layer in enumerate(model.layers):
        prefix = f"model.layers.{i}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}.{norm}.weight"] = getattr(layer, norm).half()
        for name, linear in layer.linears.items():
            module = f"{prefix}." + name.replace("self_attn_", "self_attn.").replace("mlp_", "mlp.")
            if not linear.scheme:
                tensors[f"{module}.weight"] = linear.weight.half()
                continue
            codes, bits, scale, zero = codes_of(linear)
            stored = torch.float16 if linear.scheme.half else torch.float32
            tensors[f"{module}.codes"] = pack(codes, bits)
            tensors[f"{module}.scales"] = scale.to(stored)
            if linear.scheme.learn_zero:
                tensors[f"{module}.zeros"] = zero.to(stored)
            n, k = linear.weight.shape
            weights[module] = {"quant": linear.scheme.quant, "n": n, "k": k, "act": None, "hadamard": 0}
    return tensors, weights


def write_safetensors(path, tensors):
    header, at, blobs = {}, 0, []
    for name, t in sorted(tensors.items()):
        blob = t.contiguous().view(torch.uint8).numpy().tobytes()
        dtype = next(text for text, kind in NAMES.items() if kind == t.dtype)
        header[name] = {"dtype": dtype, "shape": list(t.shape), "data_offsets": [at, at + len(blob)]}
        at += len(blob)
        blobs.append(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


@torch.no_grad()
def export(model, source, out):
    out.mkdir(parents=True, exist_ok=True)
    tensors, weights = tensors_of(model)
    write_safetensors(out / "model.safetensors", tensors)
    config = dict(model.config)
    if weights:
        config["quantization_config"] = {"quant_method": "qengine", "version": 1, "weights": weights}
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(source / name, out / name)
