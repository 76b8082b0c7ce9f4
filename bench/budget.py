#!/usr/bin/env python3
"""Speed without a GPU: reads the SASS of every CUDA kernel, counts what a k-block of its main loop costs on every pipe,
and predicts. Predictions, not measurements: +-20 % at best, docs/gpu.md says what to trust.

  budget.py check  [--work DIR] [--write]    SASS and PTX against bench/budget/static.jsonl; --write makes that table
  budget.py plans  --program TEST            predicted time of real plans: monotone in M, every instance in the table
  budget.py report --program TEST            percent of the roof per scheme, GPU and M, and the pipe that binds
  budget.py detail --kernel REGEX [--work DIR]   opcodes of the main loop

--work: what `cmake -DNVCC=.. -DROOT=. -DWORK=DIR -P tests/ptxas_report.cmake` left (default build/cuda/ptxas).
--program: build/default/bin/test_cuda_plan, which prints the plans. Exit 0: holds; 1: does not; 3: skipped, with why.
"""
import argparse, copy, glob, json, os, re, subprocess, sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
sys.dont_write_bytecode = True  # no __pycache__ in the source
sys.path.insert(0, os.path.join(HERE, "budget"))
import forecast, instances, model, ptx, sass  # noqa: E402

TABLE = os.path.join(HERE, "budget", "static.jsonl")


def names_of(mangled):
    text = subprocess.run(["c++filt"], input="\n".join(mangled), check=True, capture_output=True, text=True).stdout
    return [re.sub(r"qk_cuda::|^void |\(.*", "", line) for line in text.splitlines()]


def kernels_of(work):
    """(name, sm, code, registers) of every kernel in the folder's cubins."""
    nvdisasm = sass.disassembler(ROOT)
    for cubin in sorted(glob.glob(os.path.join(work, "*.cubin"))):
        stem = os.path.basename(cubin)[:-6]
        log = open(cubin[:-6] + ".log").read()
        used = dict(re.findall(r"entry function '(\S+)' for.*?Used (\d+) registers", log, re.S))
        funcs = sass.disassemble(nvdisasm, cubin) if used else {}
        if missing := used.keys() ^ funcs.keys():
            sys.exit(f"budget: {stem}: in one of ptxas's report and SASS only: {' '.join(missing)}")
        sm = int(re.search(r"for 'sm_(\d+)", log)[1]) if used else 0
        for mangled, name in sorted(zip(used, names_of(used)), key=lambda p: p[1]):
            yield f"{stem}: {name}", sm, funcs[mangled], int(used[mangled])


def gate(row):
    """What a kernel of sm_90a has to show in SASS."""
    name = row["kernel"]
    if row["sm"] != 90 or "sm90::" not in name:
        return []
    if "dense_sm90::" in name: # both operands by TMA
        want = ["HGMMA", "UTMALDG"]
    else:
        want = ["HGMMA" if "a16" in name else "IGMMA", *sass.BULK]
    have = [row.get("mma", "none"), *row.get("bulk", {})]
    return [f"{name}: no {w} in SASS, found {', '.join(have)}" for w in want if w not in have]


def waits(name, sm, code):
    """Kernels of sm_90 may begin before those ahead have ended (launch.cuh), so they wait themselves: a GEMM after it asked
    for its first weights and before tokens, any other before it touches memory."""
    if sm != 90 or name.endswith("whole_unit"):
        return []
    at = {op: [i.addr for i in code if i.op.startswith(op)] for op in ("ACQBULK", *sass.BULK)}
    if not at["ACQBULK"]:
        return [f"{name}: never waits for the kernels ahead"]
    weights, tokens = at["UTMALDG"][:2] if "dense_sm90::" in name else (min(at[op], default=0) for op in sass.BULK[::-1])
    if "sm90::" in name and not any(weights < a < tokens for a in at["ACQBULK"]):
        return [f"{name}: no wait between its first weights and its tokens"]
    touches = [i.addr for i in code if i.op.split(".")[0] in ("LDG", "LD", "STG", "ST", "ATOMG", "REDG", "RED")]
    if "sm90::" not in name and touches and min(touches) < min(at["ACQBULK"]):
        return [f"{name}: touches memory before it waits"]
    return []


def waits_planted(name, sm, code):
    """The same of a kernel that lost its waits, or has them too early (GEMMs) or last of all."""
    first = copy.copy(next(i for i in code if i.op.startswith("ACQBULK")))
    first.addr = -1
    rest = [i for i in code if not i.op.startswith("ACQBULK")]
    last = copy.copy(first)
    last.addr = max(i.addr for i in code) + 1
    moved = first if "sm90::" in name else last
    if not waits(name, sm, rest) or not waits(name, sm, [moved, *rest]):
        return [f"{name}: a planted loss of its wait was not noticed"]
    return []


def gate_planted(tables):
    """The gate itself: a kernel that lost its wgmma or its bulk copies is refused."""
    row = next(r for r in tables if "sm90::" in r["kernel"])
    plants = [{**row, "mma": "IMMA"}, {**row, "bulk": {}}, {**row, "regs": row["regs"] + 1}]
    return ["a planted loss was not noticed"] if not (gate(plants[0]) and gate(plants[1]) and difference(row, plants[2])) else []


def difference(old, new):
    flat = lambda row: {(k if not isinstance(v, dict) else f"{k}.{q}"): (v if not isinstance(v, dict) else v[q])
                        for k, v in row.items() for q in (v if isinstance(v, dict) else [None])}
    a, b = flat(old), flat(new)
    return "; ".join(f"{k} {a.get(k)} -> {b.get(k)}" for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k))


def check(options):
    version_file = os.path.join(options.work, "nvcc-version")
    if not os.path.exists(version_file):
        print(f"skipped: {options.work} holds no report of ptxas (tests/ptxas_report.cmake writes it)")
        return 3
    version, complaints, fmas, tables = open(version_file).read().strip(), [], 0, []
    for path in sorted(glob.glob(os.path.join(options.work, "*.ptx"))):
        text = open(path).read()
        bad, seen = ptx.check(text, ROOT)
        complaints += [f"{os.path.basename(path)}: {b}" for b in bad]
        fmas += seen
        if not bad and "w8a8_sm90" in path:  # the check itself: faults are planted and found
            complaints += [f"{os.path.basename(path)}: {p} was not noticed" for p in ptx.planted(text, ROOT)]
    for name, sm, code, regs in kernels_of(options.work):
        tables.append(model.static_row(name, sm, code, regs, instances.tile_of(name)))
        complaints += gate(tables[-1]) + waits(name, sm, code)
        if not complaints and re.search(r"w8a8_sm90::|prepare_sm90", name):
            complaints += waits_planted(name, sm, code)
        if "tensor" in tables[-1] and "tile" not in tables[-1]:
            print(f"note: {name} has tensor instructions and no tile in bench/budget/instances.py: no prediction for it")
    wgmma = sum("sm90::" in r["kernel"] for r in tables)
    if not complaints:
        print(f"{len(tables)} kernels, {sum('tile' in r for r in tables)} with a tile; {wgmma} of sm_90a show wgmma and bulk copies; "
              f"{fmas} fma in PTX, all from lines that write one")
    if not tables or not fmas or not wgmma:
        complaints.append(f"{len(tables)} kernels, {fmas} fma, {wgmma} of sm_90a: nothing was checked")
    else:
        complaints += gate_planted(tables)
    for c in complaints[:10]:
        print(f"FAILED {c}")
    if options.write:
        with open(TABLE, "w") as f:
            f.write(json.dumps({"nvcc": version, "nvdisasm": sass.DISASSEMBLER}) + "\n")
            f.writelines(json.dumps(r) + "\n" for r in tables)
        return int(bool(complaints))
    head, *rows = [json.loads(line) for line in open(TABLE)]
    if head["nvcc"] != version:
        print(f"table not compared: it was made with nvcc {head['nvcc']}, this one is {version}")
        return int(bool(complaints))
    old, new = ({r["kernel"]: r for r in t} for t in (rows, tables))
    worse = [f"{k}: not in the committed table" for k in new if k not in old]
    worse += [f"{k}: in the table, no longer built" for k in old if k not in new]
    worse += [f"{k}: {d}" for k in new if k in old and (d := difference(old[k], new[k]))]
    for w in worse:
        print(f"CHANGED {w}")
    if worse:
        print("bench/budget/static.jsonl differs: `bench/budget.py check --write`, and say why in the commit")
    return int(bool(complaints or worse))


def detail(options):
    for name, _, code, regs in kernels_of(options.work):
        if not re.search(options.kernel, name):
            continue
        main, producer, _ = sass.pick(code)
        print(f"{name}: {regs} registers, main loop {main and [hex(a) for a in main]}, producer {producer and hex(producer[0])}")
        ops = {}
        for i in sass.between(code, main or (0, -1)):
            ops[i.op] = ops.get(i.op, 0) + 1
        print(*(f"{n:5d} {sass.pipe(op):6s} {op}" for op, n in sorted(ops.items(), key=lambda x: -x[1])), sep="\n")
    return 0


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("command", choices=["check", "plans", "report", "detail"])
    p.add_argument("--work", default=os.path.join(ROOT, "build", "cuda", "ptxas"))
    p.add_argument("--write", action="store_true")
    p.add_argument("--kernel", default="")
    p.add_argument("--program", default=os.path.join(ROOT, "build", "default", "bin", "test_cuda_plan"))
    options = p.parse_args()
    if options.command == "check":
        return check(options)
    if options.command == "detail":
        return detail(options)
    rows = {r["kernel"]: r for r in (json.loads(line) for line in open(TABLE)) if "kernel" in r}
    plans = forecast.read_plans(options.program)
    return forecast.monotone(rows, plans) if options.command == "plans" else forecast.report(rows, plans)


if __name__ == "__main__":
    sys.exit(main())
