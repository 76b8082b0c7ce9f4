"""What has to hold among the rows of tests/golden/quality.csv, and the table of docs/quantize.md."""
import math


def noise(*rows):
    """Standard error of a difference of log perplexities: a token's log(p / q) varies by about twice the KL."""
    return math.sqrt(sum(2 * float(row["kl_mean"]) / float(row["tokens"]) for row in rows))


def within(at, a, b, limit):
    """One-sided: a lower perplexity is as good."""
    ratio = float(at[a]["perplexity"]) / float(at[b]["perplexity"]) - 1
    return f"perplexity of {a} at most {100 * limit:g} % above {b}: {100 * ratio:+.3f} %", ratio <= limit


def closer(at, a, b):
    x, y = float(at[a]["kl_mean"]), float(at[b]["kl_mean"])
    return f"{a} is closer than {b}: mean KL {x:.5f} against {y:.5f}", x < y


def not_worse(at, a, b):
    x, y = float(at[a]["perplexity"]), float(at[b]["perplexity"])
    return f"{a} has no more perplexity than {b} beyond noise: {x:.4f}, {y:.4f}", math.log(x / y) <= 2 * noise(at[a], at[b])


def below(at, a, b, factor):
    x, y = float(at[a]["perplexity"]), float(at[b]["perplexity"])
    return f"perplexity of {a} below {factor:g} of {b}: {x:.4f}, {y:.4f}", x < factor * y


# (what, row, row, further arguments); made where both rows were measured.
CLAIMS = [
    *[(closer, f"w4a16-g128-{m}", "w4a16-g128-rtn") for m in ("gptq", "gptq-order", "awq", "adaround")],
    *[(not_worse, f"w4a16-g128-{m}", "w4a16-g128-rtn") for m in ("gptq", "gptq-order", "awq", "adaround")],
    (within, "w4a8-two-level", "w4a8-fp16-scales", 0.01),
    (within, "w4a8-two-level-gptq", "w4a8-fp16-scales-gptq", 0.01),
    (within, "w8a8-static-rotated", "w8a8-dynamic", 0.02),
    (closer, "w8a8-static-rotated", "w8a8-static"),
    (below, "int2-qat", "int2-rtn", 0.9),
    (below, "int2-qat", "int2-gptq", 0.9),
    (below, "ternary-qat", "ternary-twn", 0.9),
    (below, "ternary-qat", "ternary-gptq", 0.9),
    (below, "binary-qat", "binary-mean", 0.9),
]


# Of one model: where inputs have outlier columns, static scales need the rotation (docs/quantize.md).
OF_MODEL = {"tiny-llama": [(within, "w8a8-static", "w8a8-dynamic", 0.02)]}


def mixed_claims(rows):
    """No uniform row is both no larger and better than the mixed one: not closer, and not of less perplexity beyond noise."""
    for mixed in [row for row in rows if row["name"].startswith("mixed")]:
        smaller = [row for row in rows if row["method"] not in ("", "qat") and not row["name"].startswith("mixed")
                   and float(row["megabytes"]) <= float(mixed["megabytes"])]
        if not smaller:
            continue
        kl, own = float(mixed["kl_mean"]), float(mixed["perplexity"])
        near = [row["name"] for row in smaller if float(row["kl_mean"]) <= kl]
        yield " ".join([f"none of {len(smaller)} uniform rows no larger than {mixed['name']} has less mean KL ({kl:.5f})", *near]), not near
        lower = [row for row in smaller if float(row["perplexity"]) < own]
        beyond = [row["name"] for row in lower if math.log(own / float(row["perplexity"])) > 2 * noise(row, mixed)]
        yield " ".join([f"none of them has less perplexity ({own:.4f}) beyond noise; {len(lower)} have less", *beyond]), not beyond


def claims(rows):
    """What has to hold: (text, whether it does)."""
    at = {row["name"]: row for row in rows}
    for what, a, b, *more in CLAIMS + OF_MODEL.get(rows[0]["model"], []):
        if a in at and b in at:
            yield what(at, a, b, *more)
    yield from mixed_claims(rows)


def table(rows, models):
    """Markdown: a line for each row of the first model, beside it what the others reached."""
    first, *others = [{row["name"]: row for row in rows if row["model"] == model} for model in models]
    head = "| row | bits | perplexity | mean KL | p99 KL | top-1 % |"
    lines = [head + "".join(f" {model}: perplexity | mean KL | top-1 % |" for model in models[1:]), "|---" * (6 + 3 * len(others)) + "|"]
    for name, row in first.items():
        cells = [name, f"{float(row['bits_per_weight']):.2f}", f"{float(row['perplexity']):.3f}", f"{float(row['kl_mean']):.5f}",
                 f"{float(row['kl_p99']):.4f}", f"{float(row['top1']):.1f}"]
        for other in others:
            got = other.get(name)
            cells += [f"{float(got['perplexity']):.2f}", f"{float(got['kl_mean']):.4f}", f"{float(got['top1']):.1f}"] if got else ["-"] * 3
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
