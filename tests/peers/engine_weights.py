"""The weights of a checkpoint as this engine dequantizes them, through ctypes: qe_model_read() and qe_dequantize()."""
import ctypes

import numpy as np

INSPECT = 1


class Error(ctypes.Structure):
    _fields_ = [("status", ctypes.c_int32), ("reserved", ctypes.c_int32), ("offset", ctypes.c_int64),
                ("where", ctypes.c_char * 128), ("message", ctypes.c_char * 384)]


class Options(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_uint32), ("flags", ctypes.c_uint32), ("limits", ctypes.c_void_p),
                ("log", ctypes.c_void_p)]


class Quant(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint8) for name in ("code", "bits", "scale", "super", "zero", "zero_num", "flags", "reserved")] + \
               [(name, ctypes.c_int16) for name in ("zero_const", "scale_log2")] + \
               [(name, ctypes.c_int32) for name in ("group_n", "group_k", "super_n", "super_k", "lut_n")]


class Act(ctypes.Structure):
    _fields_ = [("quant", Quant), ("mode", ctypes.c_int32), ("scale", ctypes.c_float), ("zero", ctypes.c_int32)]


class Tensor(ctypes.Structure):
    _fields_ = [("quant", Quant), ("act", Act), ("n", ctypes.c_int64), ("k", ctypes.c_int64), ("first_row", ctypes.c_int64),
                ("rows", ctypes.c_int64), ("facts", ctypes.c_uint32), ("hadamard", ctypes.c_int32)] + \
               [(name, ctypes.c_void_p) for name in ("codes", "scales", "super", "zeros", "zero_super", "lut", "col_scale", "order")]


class Info(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("type", ctypes.c_char_p), ("rank", ctypes.c_int32), ("dims", ctypes.c_int64 * 8),
                ("rows", ctypes.c_int64), ("columns", ctypes.c_int64), ("bytes", ctypes.c_uint64),
                ("bits_per_weight", ctypes.c_double), ("quant", Quant)]


class Checkpoint:
    def __init__(self, library, path):
        self.lib = ctypes.CDLL(str(library))
        self.lib.qe_qtensor_bytes.restype = ctypes.c_size_t
        self.lib.qe_model_find_tensor.restype = ctypes.c_int64
        options = Options(ctypes.sizeof(Options), INSPECT, None, None)
        self.model = ctypes.c_void_p()
        self._call("qe_model_open", str(path).encode(), ctypes.byref(options), ctypes.byref(self.model))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.lib.qe_model_close(self.model)

    def _call(self, function, *args):
        err = Error()
        if getattr(self.lib, function)(*args, ctypes.byref(err)):
            raise RuntimeError(f"{function}: {err.where.decode()}: {err.message.decode()}")

    def floats(self, name):
        """The tensor as float32 [n, k], columns as the model's input has them."""
        index, info, form = self.lib.qe_model_find_tensor(self.model, name.encode()), Info(), Tensor()
        self._call("qe_model_get_tensor", self.model, ctypes.c_int64(index), ctypes.byref(info))
        self._call("qe_model_form", self.model, ctypes.c_int64(index), ctypes.byref(form))
        n, k = info.rows, info.columns
        room = self.lib.qe_qtensor_bytes(ctypes.byref(info.quant), ctypes.c_int64(n), ctypes.c_int64(k), ctypes.c_uint32(0))
        memory = (ctypes.c_char * (room + 64))()
        block = (ctypes.addressof(memory) + 63) & ~63
        band, out = Tensor(), np.empty((n, k), np.float32)
        self._call("qe_qtensor_place", ctypes.byref(band), ctypes.byref(info.quant), ctypes.c_int64(n), ctypes.c_int64(k),
                   ctypes.c_uint32(0), ctypes.c_void_p(block), ctypes.c_size_t(room))
        self._call("qe_model_read", self.model, ctypes.c_int64(index), ctypes.c_int64(0), ctypes.c_int64(n), ctypes.byref(band))
        band.order = form.order
        self._call("qe_dequantize", ctypes.byref(band), ctypes.c_int64(0), ctypes.c_int64(n),
                   out.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(k))
        return out
