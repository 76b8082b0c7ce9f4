"""The tile of every GEMM instance by its name in the cubin, and the instance that a plan stands for.

Weights are on the M side everywhere: a block computes `rows` rows of W x `tok` tokens. Tiles, stages and shared memory
repeat Config of gemm_sm80.cuh and gemm_sm90.cuh; the k-blocks counted in the loop and the shared memory of the plans
are checked against them."""
import re

CODES = 4096  # QK_W4_CODE_BYTES: 64 x 128 codes of 4 bits


def block_bytes(family, units, detail=""):
    """Packed bytes of 64 rows x 128 columns without zero points, and the largest such block."""
    if family == "w8a8":
        return 8192, 8192
    if family == "w2a8":  # units: bits of a code
        return 1024 * units, 1024 * units
    if family == "s4a8":
        return CODES, CODES
    if family == "w4a8":
        return CODES + units * 128, CODES + units * 128
    if family == "w4a16":
        return CODES + units * 128, CODES + units * 192
    if family.startswith("ka"):  # units: 4 or 6, the bits of a code
        used = CODES + (640 if units == 4 else 2048 + 640)
        return used, used
    if detail == "WxCodes8":
        return 2 * CODES + units * 256, 2 * CODES + units * 320
    return CODES + units * 256, CODES + units * 256


def tile90(family, units, tok, cluster, detail=""):
    xbytes, totals = (2, True) if family.endswith("a16") else (1, False)
    used, largest = block_bytes(family, units)
    if detail.startswith("Wx"):
        codes = 2 * CODES if detail == "WxCodes8" else CODES
        used, largest = codes + units * 256, codes + units * (320 if detail == "WxCodes8" else 256)
    promotes = bool(detail)
    waiting = tok * 512 if promotes else 0  # sums of chunks before
    x = tok * 128 * xbytes
    stages = min(8, (232448 - 256 - waiting) // (x + 2 * largest))
    ring = stages * (x + 2 * largest)
    shared = max(ring, tok * 132 * 4) // 8 * 8 + 8 + 16 * stages + waiting
    handover = tok // 2 * (1 + totals + promotes) > 64
    return dict(rows=128, tok=tok, bk=128, threads=256 + (128 if handover else 32), mma_warps=8, stages=stages,
                shared=shared, w_stage=2 * used, x_stage=x, xbits=8 * xbytes, cluster=cluster)


def tile80(family, units, tok, detail):
    xbytes = 1 if family.endswith("a8") else 2
    used, largest = block_bytes(family, units, detail)
    stage = tok * 128 * xbytes + 2 * largest
    two_fit = family == "w4a16" and detail == "Half" and tok > 16 and 2 * (2 * stage + 1024) <= 100 * 1024
    stages = min(8, 48 * 1024 // stage) if stage <= 8 * 1024 else 3 if 3 * stage <= 99 * 1024 and not two_fit else 2
    return dict(rows=128, tok=tok, bk=128, threads=256, mma_warps=8, stages=stages,
                shared=max(stages * stage, tok * 132 * 4), w_stage=2 * used, x_stage=tok * 128 * xbytes, xbits=8 * xbytes)


def dense(tok, cluster, sm90):
    """Both operands of 16 bits, k in blocks of 64 columns (gemm_dense_sm80.cu, gemm_dense_sm90.cu)."""
    w, x = 128 * 128, tok * 128
    stages = min(8, (232448 - 256) // (w + x)) if sm90 else min(4, 99 * 1024 // (w + x))
    shared = max(stages * (w + x), tok * 132 * 4)
    return dict(rows=128, tok=tok, bk=64, threads=256 + (128 if tok >= 128 else 32) * sm90, mma_warps=8, stages=stages,
                shared=shared // 8 * 8 + 8 + 16 * stages if sm90 else shared, w_stage=w, x_stage=x, xbits=16,
                cluster=cluster, loads=2)


def tile_of(name):
    """Name as in the table ('gemm_w4a8_sm90: sm90::gemm<w4a8_sm90::Format<4>, 128>'), or None: no GEMM with tiles."""
    if m := re.search(r"sm90::gemm<(\w+)_sm90::Format(?:<(\d)>)?, (\d+)(?:, (\d+))?>", name):
        return tile90(m[1], int(m[2] or 1), int(m[3]), int(m[4] or 1))
    if m := re.search(r"sm90::gemm_units<w4a16_sm90::Bfloat<(\d)>, (\d+)>", name):
        return tile90("w4a16", int(m[1]), int(m[2]), 1, "Bfloat")
    if m := re.search(r"sm90::gemm_units<wxa16_sm90::Format<(?:\w+::)?(\w+), \w+, (\d)>, (\d+)>", name):
        return tile90("wxa16", int(m[2]), int(m[3]), 1, m[1])
    if m := re.search(r"sm80::gemm<(w2a8|w4a8|w4a16|wxa16)(?:_sm80)?::(\w+)<(?:(\w+), )?(?:\w+, )?(\d)>, (\d+)>", name):
        return tile80(m[1], int(m[4]), int(m[5]), m[3] if m[2] == "Format" and m[1] == "wxa16" else m[2])
    if m := re.search(r"sm90::gemm<ka16_sm90::Format<(?:\w+::)?K(\d), \w+>, (\d+), 1>", name):
        return tile90("ka16", int(m[1]), int(m[2]), 1)
    if m := re.search(r"sm80::gemm<ka16::Format<(?:\w+::)?K(\d), \w+>, (\d+)>", name):
        return tile80("ka16", int(m[1]), int(m[2]), "")
    if m := re.search(r"ka8::gemm<ka8::Format<(?:\w+::)?K(\d)Codes>, (\d+)>", name):
        tile = tile80("ka8", int(m[1]), int(m[2]), "")
        # Products for 32 columns: the codes' and the mins', or two of 16 columns.
        return dict(tile, products=2, shared=tile["shared"] + (32 * 1024 if m[2] == "64" else 0))
    if m := re.search(r"dense_sm90::gemm<\w+, (\d+), (\d)>", name):
        return dense(int(m[1]), int(m[2]), True)
    if m := re.search(r"dense_sm80::gemm<\w+, (\d+)>", name):
        return dense(int(m[1]), 1, False)
    if m := re.search(r"sm80::gemm<w8a8_sm80::Format, (\d+)>", name):
        return tile80("w8a8", 1, int(m[1]), "")
    return None


TOKENS = {"sm90": (16, 64, 128, 256, 256, 128), "sm80": (16, 32, 64, 128)}


def of_plan(plan):
    """Name of the kernel that a plan launches (its tests/test_cuda_plan.cc line), or None for one thread per output."""
    family, _, sm = plan["row"].removeprefix("cuda/").partition("_")
    if sm not in TOKENS or family == "w1a1":  # no source for the rate of products of bits on most GPUs
        return None
    if family == "dense":
        bf16 = "true" if plan["bf16"] else "false"
        if sm == "sm90":
            tok, cluster = ((16, 1), (64, 1), (128, 2), (256, 2), (128, 1))[plan["variant"]]
            return f"gemm_dense_sm90: dense_sm90::gemm<{bf16}, {tok}, {cluster}>"
        return f"gemm_dense_sm80: dense_sm80::gemm<{bf16}, {TOKENS[sm][plan['variant']]}>"
    if family == "ka16":
        form = f"Format<K{plan['bits']}, {'true' if plan['bf16'] else 'false'}>, {TOKENS[sm][plan['variant']]}"
        return f"gemm_ka16_sm90: sm90::gemm<ka16_sm90::{form}, 1>" if sm == "sm90" else f"gemm_ka16_sm80: sm80::gemm<ka16::{form}>"
    if family == "ka8":
        return f"gemm_ka8_sm80: ka8::gemm<ka8::Format<K{plan['bits']}Codes>, {TOKENS[sm][plan['variant']]}>"
    group, k = plan["group"], plan["k"]
    units = 1 if group == 0 or group >= k or group % 128 == 0 else 4
    signed = "0" if family == "w4a8" and group == 0 else ""  # nibbles with a sign; schemes with zero points are not planned
    tok = TOKENS[sm][plan["variant"]]
    kind, bf16 = "WxCodes8" if plan["bits"] > 4 else "WxTable4", "true" if plan["bf16"] else "false"
    wide = f"Format<{kind}, {bf16}, {1 if units == 1 else 8 if group % 32 else 4 if group % 64 or plan['bits'] > 4 else 2}>"
    if sm == "sm90":
        cluster = 2 if plan["variant"] >= 4 else 1
        if family == "wxa16":
            return f"gemm_wxa16_sm90: sm90::gemm_units<wxa16_sm90::{wide}, {tok}>"
        if family == "w4a16" and plan["bf16"]:
            return f"gemm_w4a16_sm90: sm90::gemm_units<w4a16_sm90::Bfloat<{units}>, {tok}>"
        form = "" if family in ("w8a8", "s4a8") else f"<{plan['bits'] if family == 'w2a8' else signed or units}>"
        return f"gemm_{family}_sm90: sm90::gemm<{family}_sm90::Format{form}, {tok}, {cluster}>"
    if family == "w8a8":
        return f"gemm_w8a8_sm80: sm80::gemm<w8a8_sm80::Format, {tok}>"
    if family == "w2a8":
        return f"gemm_w2a8_sm80: sm80::gemm<w2a8_sm80::Format<{plan['bits']}>, {tok}>"
    if family == "w4a8":
        return f"gemm_w4a8_sm80: sm80::gemm<w4a8_sm80::Format<{signed or units}>, {tok}>"
    if family == "w4a16":
        return f"gemm_w4a16_sm80: sm80::gemm<w4a16::{'Bfloat' if plan['bf16'] else 'Half'}<{units}>, {tok}>"
    return f"gemm_wxa16_sm80: sm80::gemm<wxa16::{wide}, {tok}>"
