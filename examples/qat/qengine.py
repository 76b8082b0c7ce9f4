"""What the trainer needs of libqengine.so, through ctypes: fake quantization with its gradients, and the tokenizer."""
import ctypes
import os
from pathlib import Path

import torch

F32P, F64P = ctypes.POINTER(ctypes.c_float), ctypes.POINTER(ctypes.c_double)


class Error(ctypes.Structure):
    _fields_ = [("status", ctypes.c_int32), ("reserved", ctypes.c_int32), ("offset", ctypes.c_int64),
                ("where", ctypes.c_char * 128), ("message", ctypes.c_char * 384)]


class FakeQuant(ctypes.Structure):
    _fields_ = [("n", ctypes.c_int64), ("k", ctypes.c_int64), ("group_n", ctypes.c_int32), ("group_k", ctypes.c_int32),
                ("low", ctypes.c_int32), ("high", ctypes.c_int32), ("scale", F32P), ("zero", F32P)]


def _load():
    root = Path(__file__).resolve().parents[2]
    path = os.environ.get("QENGINE_LIBRARY", root / "build/default/libqengine.so")
    lib = ctypes.CDLL(str(path))
    error = ctypes.POINTER(Error)
    lib.qe_fake_quantize_forward.argtypes = [ctypes.POINTER(FakeQuant), F32P, F32P, error]
    lib.qe_fake_quantize_backward.argtypes = [ctypes.POINTER(FakeQuant), F32P, F32P, ctypes.c_int32, F32P, F64P, F64P, error]
    lib.qe_tokenizer_open_json.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p), error]
    lib.qe_tokenizer_encode.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p,
                                        ctypes.POINTER(ctypes.c_int32), ctypes.c_size_t, ctypes.POINTER(ctypes.c_size_t), error]
    return lib


LIB = _load()


def call(function, *args):
    err = Error()
    if function(*args, ctypes.byref(err)):
        raise RuntimeError(f"{err.where.decode()}: {err.message.decode()}")


def _pointer(tensor, kind=F32P):
    return None if tensor is None else ctypes.cast(tensor.data_ptr(), kind)


class _FakeQuantize(torch.autograd.Function):
    """y = s (clamp(rne(w / s + z)) - z) of w [n, k] with s, z [n, k / group]; the gradients are the library's: straight
    through inside the range for w, LSQ for s, LSQ+ for z."""

    @staticmethod
    def forward(ctx, w, scale, zero, low, high, group):
        w, scale, zero = w.contiguous(), scale.contiguous(), zero.contiguous()
        ctx.save_for_backward(w, scale, zero)
        ctx.shape = (w.shape[0], w.shape[1], 1, group, low, high)
        y = torch.empty_like(w)
        spec = FakeQuant(*ctx.shape, _pointer(scale), _pointer(zero))
        call(LIB.qe_fake_quantize_forward, ctypes.byref(spec), _pointer(w), _pointer(y))
        return y

    @staticmethod
    def backward(ctx, dy):
        w, scale, zero = ctx.saved_tensors
        dy, dw = dy.contiguous(), torch.empty_like(w)
        ds, dz = (torch.zeros(scale.shape, dtype=torch.float64) for _ in range(2))
        spec = FakeQuant(*ctx.shape, _pointer(scale), _pointer(zero))
        call(LIB.qe_fake_quantize_backward, ctypes.byref(spec), _pointer(w), _pointer(dy), 1, _pointer(dw), _pointer(ds, F64P),
             _pointer(dz, F64P))
        return dw, ds.float(), dz.float(), None, None, None


fake_quantize = _FakeQuantize.apply


class Tokenizer:
    def __init__(self, path):
        self.handle = ctypes.c_void_p()
        call(LIB.qe_tokenizer_open_json, str(path).encode(), None, ctypes.byref(self.handle))

    def encode(self, text):
        """Token ids of a text, BOS first where the model asks for it."""
        data, count = text.encode(), ctypes.c_size_t()
        ids = (ctypes.c_int32 * (len(data) + 2))()
        call(LIB.qe_tokenizer_encode, self.handle, data, len(data), None, ids, len(ids), ctypes.byref(count))
        return ids[:count.value]
