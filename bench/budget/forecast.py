"""Predicted times of plans: monotone in M, and percent of the roof per scheme."""
import collections, json, os, re, subprocess, sys, tempfile

import instances, model
from rates import GPU, LAUNCH

STEP = 1.10  # more tokens may not be predicted faster by more than this
EDGE = 3.5   # nor one more token dearer by more than this: a larger tile, a second wave of blocks; both at once are 3.39 on a100
LAYERS = "llama-3-8b", "llama-3-70b"
# Predictions to reach, of the sum of a layer's GEMMs on sm_90: scheme prefix, least M, largest M, percent, of what.
AIMS = [("w4a16", 1, 16, 85, "bandwidth"), ("w4a8", 1, 16, 85, "bandwidth"), ("w8a8", 1024, 8192, 75, "peak"),
        ("w4a8", 1024, 8192, 65, "peak")]


def read_plans(program):
    with tempfile.TemporaryDirectory() as tmp:
        path = os.path.join(tmp, "plans.jsonl")
        run = subprocess.run([program, "--gtest_filter=CudaPlan.CoverRealShapes", "--gtest_brief=1"],
                             env={**os.environ, "QE_PLANS_OUT": path}, capture_output=True, text=True)
        if run.returncode:
            sys.exit(f"budget: {program} failed:\n{run.stdout}{run.stderr}")
        return [json.loads(line) for line in open(path)]


def row_of(rows, plan):
    """The table's row of a plan; a plan and its row must agree on threads and shared memory."""
    name = instances.of_plan(plan)
    if name is None:
        return None
    if name not in rows:
        sys.exit(f"budget: a plan of {plan['row']} launches {name}, which bench/budget/static.jsonl does not hold")
    row = rows[name]
    if (row["threads"], row["shared"]) != (plan["threads"], plan["shared"]):
        sys.exit(f"budget: {name} has {row['threads']} threads and {row['shared']} bytes shared in the table, "
                 f"its plan {plan['threads']} and {plan['shared']}: bench/budget/instances.py no longer follows Config")
    return row


def curves(rows, plans):
    """{(gpu, scheme, bf16, shape): [(m, plan, prediction)]}; rows of one thread per output have no tile and no prediction."""
    found, untiled = collections.defaultdict(list), 0
    for plan in plans:
        if plan["gpu"] not in GPU:
            continue
        row = row_of(rows, plan)
        if row is None:
            untiled += 1
            continue
        key = plan["gpu"], plan["scheme"], plan["bf16"], plan["shape"]
        found[key].append((plan["m"], plan, model.predict(row, plan, plan["gpu"])))
    return found, untiled


def monotone(rows, plans):
    found, untiled = curves(rows, plans)
    bad, worst, jump, points = [], (0, ""), (0, ""), 0
    for key, points_of in found.items():
        points_of.sort(key=lambda p: p[0])
        points += len(points_of)
        for i, (m, plan, p) in enumerate(points_of):
            where = " ".join(map(str, key))
            for later, _, q in points_of[i + 1:]:
                ratio = p["seconds"] / q["seconds"]
                worst = max(worst, (ratio, f"{where}: m {m} to {later}"))
                if ratio > STEP:
                    bad.append(f"{where}: m {m} predicted {p['seconds'] * 1e6:.1f} us, m {later} {q['seconds'] * 1e6:.1f}")
                    break
            if i and points_of[i - 1][0] + 1 == m:
                jump = max(jump, (p["seconds"] / points_of[i - 1][2]["seconds"], f"{where}: m {m - 1} to {m}"))
    gpus = sorted({key[0] for key in found})
    print(f"{points} predictions in {len(found)} curves on {', '.join(gpus)}; {untiled} plans of one thread per output left out")
    print(f"more tokens predicted faster by at most {worst[0]:.3f} ({worst[1]}); one more token dearer by at most "
          f"{jump[0]:.2f} ({jump[1]})")
    if jump[0] > EDGE:
        bad.append(f"a step of {jump[0]:.2f} at {jump[1]}, at most {EDGE}")
    print(*(f"FAILED {b}" for b in bad[:20]), sep="\n", end="\n" if bad else "")
    used = {instances.of_plan(p) for p in plans}
    if unused := [k for k, r in rows.items() if "tile" in r and k not in used]:
        print("FAILED no plan launches " + ", ".join(unused))
    return int(bool(bad or unused or len(gpus) != len(GPU) or not points))


def layer(found, gpu, scheme, name, m):
    """(prediction summed over a layer's GEMMs: seconds with launches, percent of the roof without them, kind, pipes)."""
    seconds = ideal = 0.
    pipes, kinds = collections.Counter(), collections.Counter()
    for (g, s, bf16, shape), points in found.items():
        if (g, s, bf16) != (gpu, scheme, False) or not shape.startswith(name + "."):
            continue
        for _, plan, p in (q for q in points if q[0] == m):
            least, kind = model.roof(plan, gpu, p["data"], 16 if re.search("a16|dense", plan["row"]) else 8)
            seconds, ideal = seconds + p["seconds"], ideal + least
            pipes[p["binds"]] += p["seconds"]
            kinds[kind] += least
    launches = 4 * LAUNCH
    return (seconds + launches, 100 * ideal / seconds, kinds.most_common(1)[0][0], pipes.most_common(1)[0][0]) if seconds else None


def report(rows, plans):
    """Percent of the roof of a layer's four GEMMs, the launches left out, and what binds. Predictions, all of them."""
    found, _ = curves(rows, plans)
    tokens = 1, 16, 64, 128, 256, 1024, 4096
    schemes = list(dict.fromkeys(key[1] for key in found))
    print("Predicted, not measured: percent of the roof (launches left out) and what binds, four GEMMs of a layer.\n")
    print("|GPU|layer|scheme|" + "|".join(f"M {m}" for m in tokens) + "|\n|" + "--|" * (3 + len(tokens)))
    for gpu in GPU:
        for name in LAYERS:
            for scheme in schemes:
                cells = [layer(found, gpu, scheme, name, m) for m in tokens]
                if any(cells):
                    print(f"|{gpu}|{name}|{scheme}|" + "|".join(f"{c[1]:.0f} {c[3]}" if c else "-" for c in cells) + "|")
    print("\nAims on sm_90 (predictions):\n\n|aim|GPU|layer|predicted|binds|\n|--|--|--|--|--|")
    for prefix, low, high, percent, kind in AIMS:
        for gpu in ("h100", "h200"):
            for name in LAYERS:
                cells = [(c[1], m, s, c[3]) for s in schemes if s.startswith(prefix) for m in tokens
                         if low <= m <= high and (c := layer(found, gpu, s, name, m))]
                least, m, scheme, binds = min(cells)
                verdict = "reached" if least >= percent else "missed"
                print(f"|{prefix} M {low}..{high} >= {percent} % of {kind}|{gpu}|{name}|{verdict}: {least:.0f} % ({scheme}, M {m})|{binds}|")
    return 0
