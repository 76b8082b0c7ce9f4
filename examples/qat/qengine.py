"""What the trainer needs of libqengine.so, through ctypes: fake quantization with its gradients, and the tokenizer."""
import ctypes
import functools
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


class FakeQuantRun(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_size_t), ("type", ctypes.c_int32), ("lsq_scaled", ctypes.c_int32),
                ("x", ctypes.c_void_p), ("dy", ctypes.c_void_p), ("out", ctypes.c_void_p), ("dscale", F64P), ("dzero", F64P),
                ("workspace", ctypes.c_void_p), ("workspace_bytes", ctypes.c_size_t), ("stream", ctypes.c_void_p)]


class DeviceOptions(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_size_t), ("backend", ctypes.c_int32), ("ordinal", ctypes.c_int32),
                ("threads", ctypes.c_int32), ("flags", ctypes.c_uint32), ("executor", ctypes.c_void_p),
                ("allocator", ctypes.c_void_p), ("log", ctypes.c_void_p), ("tuning", ctypes.c_char_p)]


BACKENDS = {"cpu": 2, "cuda": 3}
TYPES = {torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}

def _load():
    root = Path(__file__).resolve().parents[2]
    path = os.environ.get("QENGINE_LIBRARY", root / "build/default/libqengine.so")
    lib = ctypes.CDLL(str(path))
    error = ctypes.POINTER(Error)
    lib.qe_device_create.argtypes = [ctypes.POINTER(DeviceOptions), ctypes.POINTER(ctypes.c_void_p), error]
    lib.qe_fake_quantize_workspace.argtypes = [ctypes.c_void_p, ctypes.POINTER(FakeQuant)]
    lib.qe_fake_quantize_workspace.restype = ctypes.c_size_t
    lib.qe_fake_quantize_run.argtypes = [ctypes.c_void_p, ctypes.POINTER(FakeQuant), ctypes.POINTER(FakeQuantRun), error]
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


@functools.cache
def _device(kind, ordinal):
    """The library's device where tensors of torch's lie; it lives as long as the process."""
    options, handle = DeviceOptions(backend=BACKENDS[kind], ordinal=ordinal), ctypes.c_void_p()
    options.struct_size = ctypes.sizeof(options)
    call(LIB.qe_device_create, ctypes.byref(options), ctypes.byref(handle))
    return handle


def _run(shape, scale, zero, x, out, dy=None, dscale=None, dzero=None):
    device = _device(x.device.type, x.device.index or 0)
    spec = FakeQuant(*shape, _pointer(scale), _pointer(zero))
    workspace = torch.empty(LIB.qe_fake_quantize_workspace(device, ctypes.byref(spec)), dtype=torch.uint8, device=x.device)
    run = FakeQuantRun(ctypes.sizeof(FakeQuantRun), TYPES[x.dtype], 1, x.data_ptr(), None if dy is None else dy.data_ptr(),
                       out.data_ptr(), _pointer(dscale, F64P), _pointer(dzero, F64P), workspace.data_ptr(), workspace.numel(),
                       torch.cuda.current_stream(x.device).cuda_stream if x.is_cuda else None)
    call(LIB.qe_fake_quantize_run, device, ctypes.byref(spec), ctypes.byref(run))


class _FakeQuantize(torch.autograd.Function):
    """y = s (clamp(rne(w / s + z)) - z) of w [n, k] with s, z [n, k / group]; the gradients are the library's: straight
    through inside the range for w, LSQ for s, LSQ+ for z. Tensors of the CPU or of one CUDA device, on its current stream."""

    @staticmethod
    def forward(ctx, w, scale, zero, low, high, group):
        w, scale, zero = w.contiguous(), scale.contiguous(), zero.contiguous()
        ctx.save_for_backward(w, scale, zero)
        ctx.shape = (w.shape[0], w.shape[1], 1, group, low, high)
        y = torch.empty_like(w)
        _run(ctx.shape, scale, zero, w, y)
        return y

    @staticmethod
    def backward(ctx, dy):
        w, scale, zero = ctx.saved_tensors
        dy, dw = dy.contiguous(), torch.empty_like(w)
        ds, dz = (torch.zeros(scale.shape, dtype=torch.float64, device=w.device) for _ in range(2))
        _run(ctx.shape, scale, zero, w, dw, dy, ds, dz)
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
