"""Arithmetic in PTX that the source did not write: every fma must come from a line that says so (-lineinfo names the
line), and no product may be left for ptxas to fuse (a float mul without .rn followed by its contraction)."""
import os, re


def check(text, root):
    """[complaints], number of fma seen in the text of a PTX file."""
    files = {int(n): path for n, path in re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]+)"', text, re.M)}
    sources, bad, seen, loc = {}, [], 0, None

    def line_of(file, number):
        if file not in sources:
            path = files[file]
            with open(path if os.path.isabs(path) else os.path.join(root, path), errors="replace") as f:
                sources[file] = f.read().splitlines()
        lines = 8 if "/cuda_" in files[file] else 1  # a statement of the toolkit's headers spans lines
        return "\n".join(sources[file][number - 1:number - 1 + lines])

    for line in text.splitlines():
        if m := re.match(r"\s*\.loc\s+(\d+)\s+(\d+)", line):
            loc = int(m[1]), int(m[2])
            continue
        if re.search(r"\.(ftz|approx)\b", line):
            bad.append(f"flushes or approximates: {line.strip()}")
        if m := re.search(r"\b(?:fma|mad)\.(?!lo|hi|wide)[\w.]*f(?:16|32|64)", line):
            seen += 1
            if not loc or "fma" not in line_of(*loc):
                bad.append(f"an fma the source did not write: {line.strip()} of {files[loc[0]] if loc else '?'}:{loc and loc[1]}")
        if m := re.search(r"\bmul(?:\.sat)?\.(f(?:32|64))\b", line):
            bad.append(f"a product that ptxas may fuse: {line.strip()}")
    for function in text.split(".entry")[1:]:
        products = set(re.findall(r"mul(?:\.sat)?\.(?:f16|f16x2|bf16|bf16x2)\s+(%\w+)", function))
        sums = re.findall(r"((?:add|sub)\.(?:f16|f16x2|bf16|bf16x2)\s+%\w+,\s*(%\w+),\s*(%\w+))", function)
        bad += [f"a half product that ptxas may fuse: {s}" for s, a, b in sums if products & {a, b}]
    return bad, seen


def planted(text, root):
    """Faults put into a PTX file: every one must be found. [those that were not]"""
    flushed = text.replace("add.rn.f32", "add.ftz.f32", 1)
    loose = text.replace("mul.rn.f32", "mul.f32", 1)
    fused = re.sub(r"add\.rn\.f32(.*);", r"fma.rn.f32\1, %f1;", text, count=1)
    plants = {"a flushed sum": flushed, "a loose product": loose, "a foreign fma": fused}
    return [name for name, faulty in plants.items() if faulty == text or len(check(faulty, root)[0]) != 1]
