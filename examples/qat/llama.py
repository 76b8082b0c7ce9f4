"""The bundled model in PyTorch: a plain Llama, read from a Hugging Face folder, whose linears may be fake quantized."""
import json
import struct

import torch
import torch.nn.functional as F
from torch import nn

from qengine import fake_quantize

DTYPES = {"F16": torch.float16, "F32": torch.float32, "BF16": torch.bfloat16}


class Scheme:
    """One row of the table: a descriptor of qquant and the levels it has. `code_low` is the code of the level `low`."""

    def __init__(self, quant, low, high, group=0, zero=0.0, learn_zero=False, half=False, step=1.0, method="rtn"):
        self.quant, self.low, self.high, self.group, self.zero = quant, low, high, group, zero
        self.learn_zero, self.half, self.step, self.method = learn_zero, half, step, method


# A sign is one bit with the zero in the middle: s' (clamp(rne(w / s' + 1/2), 0, 1) - 1/2) = +-s'/2, so that the stored
# scale is s'/2 (`step`). TWN, absmean and a learned scale are one descriptor: int2 with codes 0, 1, 2 around zero 1.
SCHEMES = {
    "float": None,
    "int4": Scheme("int4:g128:f16", -7, 7, group=128, half=True),
    "int2": Scheme("int2:g64:f16:z=f16", 0, 3, group=64, zero=1.5, learn_zero=True, half=True),
    "ternary": Scheme("int2:channel:f32:z=1", -1, 1, method="twn"),
    "binary": Scheme("sign:channel:f32", 0, 1, zero=0.5, step=0.5, method="binary"),
}


def best_scales(w, scheme):
    """Of 40 clip ratios of each group's largest |w| the one with the least squared error."""
    group = scheme.group or w.shape[1]
    x = w.reshape(w.shape[0], -1, group)
    reach = max(scheme.high - scheme.zero, scheme.zero - scheme.low)
    best, least = torch.ones(x.shape[:2]), torch.full(x.shape[:2], float("inf"))
    for ratio in torch.linspace(0.05, 1.0, 40).tolist():
        s = (x.abs().amax(2) * ratio / reach).clamp_min(1e-8)
        q = torch.clamp(torch.round(x / s[..., None] + scheme.zero), scheme.low, scheme.high) - scheme.zero
        error = ((q * s[..., None] - x) ** 2).sum(2)
        best, least = torch.where(error < least, s, best), torch.minimum(error, least)
    return best


def half(x):
    """The nearest half float, straight through."""
    return x + (x.half().float() - x).detach()


class Linear(nn.Module):
    def __init__(self, weight, scheme=None):
        super().__init__()
        self.weight, self.scheme = nn.Parameter(weight), scheme
        if scheme:      # the scale is learned by its logarithm, so that it stays positive
            self.log_scale = nn.Parameter(best_scales(weight, scheme).log())
            self.zero = nn.Parameter(torch.full_like(self.log_scale, scheme.zero), requires_grad=scheme.learn_zero)

    def grid(self):
        """Scales and zeros as they are stored."""
        s, z = self.log_scale.exp(), self.zero
        return (half(s), half(z)) if self.scheme.half else (s, z)

    def quantized(self):
        if not self.scheme:
            return self.weight
        return fake_quantize(self.weight, *self.grid(), self.scheme.low, self.scheme.high, self.scheme.group)

    def forward(self, x):
        return F.linear(x, self.quantized())


class Layer(nn.Module):
    def __init__(self, tensors, prefix, config, scheme):
        super().__init__()
        self.heads, self.kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self.eps = config["rms_norm_eps"]
        self.linears = nn.ModuleDict()
        for part, names in (("self_attn", "qkvo"), ("mlp", ("gate", "up", "down"))):
            for name in names:
                module = f"{part}.{name}_proj"
                self.linears[module.replace(".", "_")] = Linear(tensors[f"{prefix}.{module}.weight"], scheme)
        self.input_layernorm = nn.Parameter(tensors[f"{prefix}.input_layernorm.weight"])
        self.post_attention_layernorm = nn.Parameter(tensors[f"{prefix}.post_attention_layernorm.weight"])

    def attention(self, x, cos, sin):
        b, t, _ = x.shape
        q, k, v = (self.linears[f"self_attn_{n}_proj"](x).view(b, t, -1, cos.shape[-1]).transpose(1, 2) for n in "qkv")
        q, k = (h * cos + torch.cat((-h[..., h.shape[-1] // 2:], h[..., :h.shape[-1] // 2]), -1) * sin for h in (q, k))
        k, v = (h.repeat_interleave(self.heads // self.kv_heads, 1) for h in (k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.linears["self_attn_o_proj"](out.transpose(1, 2).reshape(b, t, -1))

    def forward(self, x, cos, sin):
        x = x + self.attention(F.rms_norm(x, x.shape[-1:], self.input_layernorm, self.eps), cos, sin)
        y = F.rms_norm(x, x.shape[-1:], self.post_attention_layernorm, self.eps)
        gate, up = self.linears["mlp_gate_proj"](y), self.linears["mlp_up_proj"](y)
        return x + self.linears["mlp_down_proj"](F.silu(gate) * up)


class Llama(nn.Module):
    def __init__(self, folder, scheme=None):
        super().__init__()
        self.config = json.loads((folder / "config.json").read_text())
        tensors = {name: t.float() for name, t in read_safetensors(folder / "model.safetensors").items()}
        self.embedding = nn.Parameter(tensors["model.embed_tokens.weight"])
        self.layers = nn.ModuleList(Layer(tensors, f"model.layers.{i}", self.config, scheme)
                                    for i in range(self.config["num_hidden_layers"]))
        self.norm = nn.Parameter(tensors["model.norm.weight"])
        self.head = nn.Parameter(tensors["lm_head.weight"])

    def forward(self, ids):
        dim, base = self.config["head_dim"], self.config["rope_parameters"]["rope_theta"]
        position, pair = (torch.arange(*r, device=ids.device).float() for r in ((ids.shape[1],), (0, dim, 2)))
        angle = torch.outer(position, base ** (-pair / dim))
        cos, sin = (torch.cat((f(angle), f(angle)), -1) for f in (torch.cos, torch.sin))
        x = F.embedding(ids, self.embedding)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return F.linear(F.rms_norm(x, x.shape[-1:], self.norm, self.config["rms_norm_eps"]), self.head)

    def loss(self, ids):
        return F.cross_entropy(self(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def read_safetensors(path):
    data = bytearray(path.read_bytes())
    size, = struct.unpack_from("<Q", data)
    header = json.loads(data[8:8 + size])
    header.pop("__metadata__", None)
    return {name: torch.frombuffer(data, dtype=DTYPES[t["dtype"]], offset=8 + size + t["data_offsets"][0],
                                   count=torch.Size(t["shape"]).numel()).view(t["shape"]) for name, t in header.items()}
