#!/usr/bin/env python3
"""Peers found on a GPU machine, timed as qbench times: CUDA graph, weights rotated beyond three times the L2.

usage: gpu_peers.py --shape llama-3-8b [--m 1,16,...] --json FILE
Peers: torch FP16 (its cuBLAS) and torch._int_mm (int8 product alone, without quantizing or scaling). Exit 3: none here."""
import argparse, json, os, re, sys

SHAPES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "shapes.txt")


def timed(torch, call, weights):
    """Median microseconds of a call; one graph goes through all weights."""
    for w in weights[:2]:
        call(w)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for w in weights:
            call(w)
    times = []
    for _ in range(21):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / len(weights))
    return sorted(times)[len(times) // 2]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--shape", required=True)
    p.add_argument("--m", default="1,16,32,64,128,256,1024,4096")
    p.add_argument("--json", required=True)
    o = p.parse_args()
    try:
        import torch
    except ImportError:
        print("skipped: no peer here (torch is not installed)")
        return 3
    if not torch.cuda.is_available():
        print("skipped: torch sees no GPU")
        return 3
    shapes = [(int(n), int(k)) for name, n, k in re.findall(r'SHAPE\("([^"]+)", (\d+), (\d+)\)', open(SHAPES).read())
              if name.startswith(o.shape)]
    if not shapes:
        sys.exit(f"gpu_peers: no shape begins with {o.shape}")
    cache = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 64 << 20)
    with open(o.json, "w") as out:
        for n, k in shapes:
            count = max(2, 1 + 3 * cache // (n * k))
            half = [torch.randn(n, k, device="cuda", dtype=torch.float16) for _ in range(max(2, count // 2 + 1))]
            byte = [torch.randint(-127, 128, (n, k), device="cuda", dtype=torch.int8) for _ in range(count)]
            for m in map(int, o.m.split(",")):
                x = torch.randn(m, k, device="cuda", dtype=torch.float16)
                base = timed(torch, lambda w: torch.nn.functional.linear(x, w), half)
                found = {"torch f16": base}
                if m > 16:  # what _int_mm takes
                    q = torch.randint(-127, 128, (m, k), device="cuda", dtype=torch.int8)
                    found["torch int8 product"] = timed(torch, lambda w: torch._int_mm(q, w.t()), byte)
                for impl, us in found.items():
                    row = dict(kind="gemm", backend="peer", impl=impl, scheme="", m=m, n=n, k=k, us_median=us, baseline="torch f16",
                               baseline_us=base, device=torch.cuda.get_device_name(0))
                    out.write(json.dumps(row) + "\n")
                    print(f"{impl} {n}x{k} m {m}: {us:.1f} us")
    return 0


if __name__ == "__main__":
    sys.exit(main())
