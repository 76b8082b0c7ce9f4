"""SASS as lists of instructions: disassembly, pipes, loops."""
import os, re, subprocess, sys

XU = re.compile(r"MUFU|I2F$|I2F\.|F2I|F2F|POPC|FLO|BREV|FRND|I2I")
HALF = re.compile(r"H(FMA2|ADD2|MUL2|SET2|SETP2|MNMX2)")
HEAVY = re.compile(r"IMAD|IMUL|IDP")
FMA = re.compile(r"F(FMA|ADD|MUL|SWZ)")
SHARED = re.compile(r"LDS|STS|LDSM|STSM|ATOMS|SHFL|LDGSTS|LDL|STL")  # all on the shared-memory data path
UNIFORM = re.compile(r"U[A-Z]|R2UR|S2UR|VOTEU")
CONTROL = re.compile(r"BRA|BSSY|BSYNC|BREAK|EXIT|RET|CALL|BAR|DEPBAR|LDGDEPBAR|NOP|WARPSYNC|WARPGROUP|SYNCS|ELECT|FENCE"
                     r"|MEMBAR|ERRBAR|CCTL|S2R|CS2R|YIELD|NANOSLEEP|PLOP3|UTMA|UBLK|LDG|STG|LDC|ULDC|LD|ST|RED"
                     r"|ATOM|JMP|BRX|ACQBULK|DEPC|PREEXIT|USETMAXREG|ARRIVES|LEPC|BPT")
BULK = ("UTMALDG", "UBLKCP")
DISASSEMBLER = "nvidia-cuda-nvdisasm==13.5.37"  # decodes every earlier toolkit's code; one version, one spelling


class Instr:
    __slots__ = "addr op rest pred stall target".split()


def disassembler(root):
    """Path of the pinned nvdisasm, installed into build/venv when it is not there."""
    venv = os.path.join(root, "build", "venv")
    python = os.path.join(venv, "bin", "python")
    find = "import nvidia, os; print(*[os.path.join(p, d, 'bin', 'nvdisasm') for p in nvidia.__path__ for d in os.listdir(p)])"
    name, version = DISASSEMBLER.split("==")
    have = f"import importlib.metadata as m, sys; sys.exit(m.version('{name}') != '{version}')"
    if not os.path.exists(python):
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    if subprocess.run([python, "-c", have], capture_output=True).returncode:
        pip = subprocess.run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", DISASSEMBLER],
                             capture_output=True, text=True)
        if pip.returncode:
            print(f"skipped: {DISASSEMBLER} cannot be installed: {(pip.stderr.strip().splitlines() or ['?'])[-1]}")
            sys.exit(3)
    for path in subprocess.run([python, "-c", find], capture_output=True, text=True, check=True).stdout.split():
        if os.path.exists(path):
            return path
    sys.exit(f"budget: {DISASSEMBLER} holds no nvdisasm")


def disassemble(nvdisasm, cubin):
    """{mangled name: [Instr]}."""
    text = subprocess.run([nvdisasm, "-hex", "-c", cubin], check=True, capture_output=True, text=True).stdout
    funcs, code, labels, pending = {}, None, {}, []
    for line in text.splitlines():
        if m := re.match(r"\.text\.(\S+):", line):
            code, labels, pending = funcs.setdefault(m[1], []), {}, []
        elif m := re.match(r"(\.L_x?\S*):", line):
            pending.append(m[1])
        elif m := re.match(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:\{\s*)?(@!?U?P\w+\s+)?([A-Z][\w.]*)\s*(.*?)\s*;", line):
            i = Instr()
            i.addr, i.pred, i.op, i.rest, i.stall = int(m[1], 16), (m[2] or "").strip(), m[3], m[4], 1
            t = re.search(r"\((\.L_\w+)\)", i.rest)
            i.target = (labels, t[1]) if t else None
            for name in pending:
                labels[name] = i.addr
            pending = []
            code.append(i)
        elif code and (m := re.match(r"\s+/\* 0x([0-9a-f]{16}) \*/", line)):
            code[-1].stall = max(1, int(m[1], 16) >> 41 & 15)  # high word, bits 105-108: issue stall
    for code in funcs.values():
        for i in code:
            i.target = i.target[0].get(i.target[1]) if i.target else None
    return funcs


def mma(i):
    """(MACs of one warp, element bits, shared bytes read per warp) of a tensor instruction, else None."""
    if m := re.match(r"[HIQ]GMMA\.(?:SP\.)?64x(\d+)x(\d+)", i.op):
        n, k = int(m[1]), int(m[2])
        ss = re.match(r"\w+,\s*gdesc", i.rest)
        return 64 * n * k // 4, 256 // k, (64 * 32 * bool(ss) + n * 32) // 4
    if m := re.match(r"[HIQ]MMA\.(?:SP\.)?(16|8)(\d+?)(8|16|32|64)(?:\.|$)", i.op):
        return int(m[1]) * int(m[2]) * int(m[3]), 16 if i.op[0] == "H" else 8, 0
    return None


def width(op):
    """Shared-memory bytes of one warp instruction; sub-word and 32-bit accesses take a wavefront of 128."""
    if m := re.match(r"LDSM.*?\.(?:M\w+\.)?(\d)$|LDSM.*\.(\d)\b", op):
        return 128 * int(m[1] or m[2])
    if op.startswith(("LDSM", "SHFL")):
        return 128
    if m := re.search(r"\.(128|64|U8|S8|U16|S16)\b", op):
        return {"128": 512, "64": 256}.get(m[1], 128)
    return 128


def pipe(op):
    if re.match(r"[HIQDB]G?MMA", op): return "tensor"
    if SHARED.match(op): return "smem"
    if XU.match(op): return "xu"
    if HALF.match(op): return "half"
    if HEAVY.match(op): return "heavy"
    if FMA.match(op): return "fma"
    if CONTROL.match(op): return "ctrl"
    if UNIFORM.match(op): return "uni"
    return "alu"  # LOP3 SHF PRMT IADD3 LEA ISETP SEL IMNMX MOV I2FP F2FP ...


def between(code, loop):
    return [i for i in code if loop[0] <= i.addr <= loop[1]]


def macs(body):
    return sum(mma(i)[0] for i in body if mma(i))


def loops(code):
    """All loops and the innermost ones, [(head, tail)], by backward branch; spin loops (only waiting) are dropped."""
    found = []
    for i in code:
        if i.op.startswith(("BRA", "JMP")) and i.target is not None and i.target < i.addr:
            body = between(code, (i.target, i.addr))
            if any(pipe(j.op) != "ctrl" for j in body) or any(j.op.startswith((*BULK, "LDG")) for j in body):
                found.append((i.target, i.addr))
    found = sorted({h: max(t for g, t in found if g == h) for h, _ in found}.items())
    # intervals that cross another loop are returns from an out-of-line wait
    found = [a for a in found if not any(b[0] < a[0] <= b[1] < a[1] for b in found)]
    return found, [a for a in found if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in found)]


def pick(code):
    """(main loop or None, producer loop or None, all loops)."""
    every, inner = loops(code)
    main = max(inner, key=lambda l: (macs(between(code, l)), l[1] - l[0]), default=None)
    # A wait inside the loop can make a small inner loop hide the real one: widen while MMAs are gained.
    if main and not macs(between(code, main)):
        main = min((l for l in every if macs(between(code, l))), key=lambda l: l[1] - l[0], default=None)
    # The loop that brings weights and tokens; one before it brings the first weights alone.
    bulk = lambda l: sum(i.op.startswith(BULK) for i in between(code, l))
    loads = [l for l in every if not macs(between(code, l)) and bulk(l)]
    return main, min(loads, key=lambda l: (-bulk(l), l[1] - l[0]), default=None), every
