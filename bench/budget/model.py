"""From a kernel's SASS to counts per k-block (static), and from those and a plan to a predicted time."""
import math, re

import instances
from rates import ARCH, GPC, GPU, LAUNCH, WGMMA_DRAIN
from sass import BULK, between, macs, mma, pick, pipe, width

PIPES = "alu heavy fma half xu uni".split()
EPILOGUE = 60        # warp instructions per four outputs of a tile, turn-around and store  # assumed
DEQUANT = 250        # warp instructions per eight columns of a dequantized row             # assumed
REDUCE = 1.0e-6      # seconds a second kernel of the same graph adds, besides its bytes    # assumed


def hazards(code, body, producer, gmma, tile, kpi):
    count = lambda pattern: sum(re.match(pattern, i.op) is not None for i in body + producer)
    wait0 = sum(i.op.startswith("WARPGROUP.DEPBAR") and re.search(r",\s*0x0\b", i.rest) is not None for i in body)
    found = []
    if x := count(r"LDL|STL"): found.append(f"local x{x}")
    elif x := sum(i.op.startswith(("LDL", "STL")) for i in code): found.append(f"local outside loop x{x}")
    if gmma and wait0: found.append(f"wgmma wait<0> x{wait0} for {count('.GMMA')} wgmma")
    if gmma and count("WARPGROUP.ARRIVE") >= count(".GMMA") > 1: found.append("every wgmma alone")
    if x := count(r"(LDS|STS)\.(U|S)(8|16)"): found.append(f"sub-word shared x{x}")
    if x := count(r"LDS$") + count(r"LDS\.64"): found.append(f"narrow LDS x{x}")
    if x := count("BSSY"): found.append(f"divergent region x{x}")
    if x := count("CALL"): found.append(f"call x{x}")
    if x := count(r"(I2F|F2I|F2F)(\.|$)"): found.append(f"XU convert x{x}")
    if tile and gmma and not producer: found.append("producer loop not found")
    if tile and (abs(kpi - round(kpi)) > .01 or kpi < .99): found.append(f"MMA count gives {kpi:.2f} k-blocks: check the tile")
    return found, wait0


def lockstep(body, arch, warps, gmma):
    """Clocks of a k-block when all warps of a block are in the same phase: nothing overlaps but stalls and pipes."""
    a, total = ARCH[arch], 0.
    share = max(1, warps / 4)  # warps of this role per scheduler
    for i in body:
        kind, busy = pipe(i.op), 1
        if kind == "tensor":
            busy = 0 if gmma else mma(i)[0] * 4 / a["tc"][mma(i)[1]]
        elif kind == "smem" and not i.op.startswith("LDGSTS"):
            busy = width(i.op) / 32
        elif kind in a:
            busy = 4 / a[kind]
        total += max(i.stall, busy * share)
    return total


def count(body, producer, tile, kpi, per_load):
    """Warp instructions per k-block and pipe, shared bytes, MACs and the stall floor of one warp."""
    warps = tile["mma_warps"]
    n = dict.fromkeys(["issue", *PIPES, "smem", "mac", "stall"], 0.)
    for i in body:
        kind = pipe(i.op)
        n["issue"] += warps / kpi
        n["stall"] += i.stall / kpi
        if kind in PIPES:
            n[kind] += warps / kpi
        if kind == "smem" and not i.op.startswith("LDGSTS"):
            n["smem"] += width(i.op) * warps / kpi
        if m := mma(i):
            n["mac"] += m[0] * warps / kpi
            n["smem"] += m[2] * warps / kpi
    for i in producer:
        n["issue"] += 1 / per_load
        if (kind := pipe(i.op)) in PIPES:
            n[kind] += 1 / per_load
    n["smem"] += tile["w_stage"] + tile["x_stage"]  # the copies' writes
    return {k: round(v) for k, v in n.items()}


def static_row(name, arch, code, regs, tile):
    """What the committed table says of a kernel."""
    tensor = [i.op for i in code if mma(i)]
    row = dict(kernel=name, sm=arch, regs=regs, instructions=len(code))
    if tensor:
        row["tensor"] = len(tensor)
        row["mma"] = sorted({re.match(r"\w+", op)[0] for op in tensor})[0]
    if bulk := {op: n for op in BULK if (n := sum(i.op.startswith(op) for i in code))}:
        row["bulk"] = bulk
    if not tile:
        row["hazards"], _ = hazards(code, code, [], False, None, 1)
        row["hazards"] = [h for h in row["hazards"] if h.startswith(("local", "call", "every"))]
        return row
    main, prod, _ = pick(code)
    body = [i for i in between(code, main) if i.pred != "@!PT"] if main else []  # @!PT: ptxas padding
    producer = between(code, prod) if prod else []
    gmma = any("GMMA" in i.op for i in body)
    kpi = macs(body) * tile["mma_warps"] / (tile["rows"] * tile["tok"] * tile["bk"] * tile.get("products", 1)) or 1
    loads = tile.get("loads") or 1 + tile["xbits"] // 8  # one bulk copy of W, a TMA load per 128 bytes of x
    per_load = max(1, sum(i.op.startswith(BULK) for i in producer) // loads)
    found, wait0 = hazards(code, body, producer, gmma, tile, kpi)
    row.update(tile=f"{tile['rows']}x{tile['tok']}x{tile['bk']}", threads=tile["threads"], shared=tile["shared"],
               stages=tile["stages"], hold=1 if wait0 or not gmma else 2, occupancy=occupancy(tile, regs, arch),
               l2=tile["w_stage"] + tile["x_stage"] // tile.get("cluster", 1), bits=tile["xbits"], per_k_block=count(body, producer, tile, kpi, per_load))
    drain = round(WGMMA_DRAIN * wait0 / kpi) if gmma else 0
    runs_on = [arch] if gmma else sorted(ARCH)
    row["lockstep"] = {str(a): round(lockstep(body, a, tile["mma_warps"], gmma) / kpi) for a in runs_on}
    row["drain"], row["hazards"] = drain, found
    cyc = cycles(row, arch)
    row["binds"] = max(cyc, key=cyc.get)
    row["flight"] = (row["l2"]) * max(tile["stages"] - row["hold"], 0) * row["occupancy"]
    return row


def occupancy(tile, regs, arch):
    a = ARCH[arch]
    up = lambda x, g: (x + g - 1) // g * g
    warps = up(tile["threads"] // 32, 4)
    return max(1, min(a["shared"] // (tile["shared"] + 1024), 65536 // (up(regs, 8) * 32) // warps,
                      a["warps"] * 32 // tile["threads"]))


def cycles(row, arch):
    """Clocks per k-block that each pipe of an SM is busy."""
    a, n = ARCH[arch], row["per_k_block"]
    rate = (a["wg"] if "GMMA" in row["mma"] else a["tc"])[row["bits"]]
    fma = n["fma"] + n["heavy"] + (n["half"] if arch >= 86 else 0)
    return dict(issue=n["issue"] / 4, alu=n["alu"] / a["alu"], fma=max(fma / a["fma"], n["heavy"] / a["heavy"]),
                half=n["half"] / a["half"], xu=n["xu"] / a["xu"], uni=n["uni"] / a["uni"], smem=n["smem"] / 128,
                tensor=n["mac"] / rate)


def step_of(row, g, blocks, live):
    """Clocks of a k-block while `blocks` blocks run, `live` of them on an SM, and what binds."""
    a, gmma = ARCH[g["arch"]], "GMMA" in row["mma"]
    cap = min(1., g["tensor"] / (g["sms"] * (a.get("wg") or a["tc"])[16] * 2 * g["clk"]))
    cyc = cycles(row, g["arch"])
    per = {p: c * live / (cap if p == "tensor" else 1) for p, c in cyc.items()}
    per["l2"] = row["l2"] * blocks / g["l2"]
    own, stall = cyc["tensor"] * 4 / 8, row["per_k_block"]["stall"]
    per["warp"] = own + stall + row["drain"] if row["drain"] else max(own, stall)
    if not gmma:
        per["warp"] = max(per["warp"], row["lockstep"][str(g["arch"])])
    depth = row["stages"] - row["hold"]
    alone = per["warp"] if gmma else max(per["warp"], max(cyc.values()))
    per["latency"] = g["latency"] / depth if depth > 0 else g["latency"] + alone
    binds = max(per, key=per.get)
    return per[binds], binds


def splits_seconds(plan, g, rows, tok):
    """What adding the sums of splits costs: a second kernel and the workspace through L2, or reads inside clusters."""
    splits, m, n = plan["splits"], plan["m"], plan["n"]
    if splits == 1:
        return 0
    if plan["workspace"]:
        return REDUCE + 2 * splits * m * n * 4 / (g["l2"] * g["clk"])
    read = min(m, tok) * rows * 4 * (splits - 1) / splits
    return (3 * g["hop"] + read / g["peer"]) / g["clk"]  # a barrier, the loads, a barrier


def predict(row, plan, gpu):
    """Seconds of one plan on one GPU and what binds. Blocks are tiles x splits; tokens x rows x k of the problem."""
    g = GPU[gpu]
    m, n, k = plan["m"], plan["n"], plan["k"]
    rows, tok, bk = map(int, row["tile"].split("x"))
    occ = occupancy(dict(threads=row["threads"], shared=row["shared"]), row["regs"], g["arch"])
    blocks = math.ceil(n / rows) * math.ceil(m / tok) * plan["splits"]
    kb = math.ceil(math.ceil(k / bk) / plan["splits"])
    slots = g["sms"] * occ
    if plan["splits"] > 1 and not plan["workspace"]:
        slots = g["sms"] // GPC * (GPC // plan["splits"]) * plan["splits"]
    full, rest = divmod(blocks, slots)  # whole waves, and a last one with fewer blocks on an SM
    live, rest_live = min(occ, math.ceil(blocks / g["sms"])), math.ceil(rest / g["sms"])
    step, binds = step_of(row, g, min(blocks, slots), live)
    last = step_of(row, g, rest, rest_live)[0] if rest else 0
    edge = g["latency"] + rows * tok / 4 * EPILOGUE / 32 / 4
    waves = full + bool(rest)
    clocks = kb * (full * step + last) + (edge * waves if occ == 1 else edge * (1 + .5 * (waves - 1)))
    dense = plan["row"].startswith("cuda/dense")
    weight = instances.tile_of(row["kernel"])["w_stage"]
    out = m * n * 2
    data = weight * math.ceil(n / rows) * math.ceil(k / bk) + m * k * row["bits"] // 8 + out
    flight = row["l2"] * max(row["stages"] - row["hold"], 1) * live * min(g["sms"], blocks)
    reach = min(1., flight / (g["dram"] * g["latency"] / g["clk"]))  # too few bytes in flight: less bandwidth
    memory, run = data / (g["dram"] * reach), clocks / g["clk"] + out / g["dram"]
    seconds = max(memory, run)
    if memory > run:
        binds = "dram" if reach == 1 else "flight"
    seconds += splits_seconds(plan, g, rows, tok)
    if dense: # what must be read is the packed weight
        data = plan["packed"] + m * k * 2 + out
        if plan["written"]:
            seconds += dequantize(plan, g)
    return dict(seconds=seconds, binds=binds, waves=waves, data=data)


def dequantize(plan, g):
    """Seconds of the kernels that write 16-bit weights: a launch a pass, bytes, or instructions."""
    weights = plan["n"] * plan["k"]
    issue = weights / 8 / 32 * DEQUANT / 4 / g["sms"] / g["clk"]
    return plan["passes"] * REDUCE + max((plan["packed"] + 2 * weights) / g["dram"], issue)


def roof(plan, gpu, data, bits):
    """The larger of bytes at the copy's speed and MACs at the tensor peak, in seconds; and which of them."""
    g = GPU[gpu]
    peak = g["tensor"] * (2 if bits == 8 else 1)
    byte, mac = data / g["dram"], 2. * plan["m"] * plan["n"] * plan["k"] / peak
    return max(byte, mac), "bandwidth" if byte > mac else "peak"
