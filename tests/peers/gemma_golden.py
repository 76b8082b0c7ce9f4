#!/usr/bin/env python3
"""Token ids llama.cpp gives for the Gemma 3 vocabulary: ordinary, hostile and random texts, with special tokens in the
text taken as text and as tokens.

usage: gemma_golden.py MODEL.gguf OUT.jsonl      (OUT: tests/golden/gemma.tok.jsonl; only the vocabulary is loaded)
Made with llama-cpp-python 0.3.36."""
import json
import random
import sys

import llama_cpp

FIXED = [
    "", "a", " ", "  ", "Hello world", "Hello, world! It's 2026-11-24.", "  leading and   inner    spaces  ",
    "tabs\tand\nnew\n\nlines\r\n\r\n", "def f(x):\n    return x ** 2  # comment\n\n\nclass A:\n\tpass\n",
    "naïve café — “quotes” … €100", "日本語のテキスト、漢字とかな。", "Привет, мир! Как дела?", "مرحبا بالعالم", "हिन्दी पाठ",
    "👍🏽👨‍👩‍👧‍👦 emoji", "a\u0301 combining e\u0301\u0323", "zero\u200bwidth\u00a0nbsp\u3000ideo", "\n" * 40, "a" * 100, " " * 70,
    "\t" * 20, "▁▁literal▁marks", "<bos>not special<eos>", "<start_of_turn>user\nhi<end_of_turn>\n",
    "<unused5><table><h1>T</h1></table>", "<0x41><0xFF>", "\x01\x02\x7f control", "NUL\x00inside", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈",
    "3.14159265358979 1,000,000 0xdeadbeef", "https://example.com/a?b=c&d=e#f", "SELECT * FROM t WHERE x='y';", "ﷺ ﬃ ½ ²",
    "The quick brown fox jumps over the lazy dog. " * 5,
]
LETTERS = list("abcdefghijklmnopqrstuvwxyzABC0123456789      \n\n\t.,;:!?'\"()-<>/▁éßжя中文あ한😀\u0301\u200d")


def texts():
    draw = random.Random(7)
    out = list(FIXED)
    for _ in range(150):
        out.append("".join(draw.choice(LETTERS) for _ in range(draw.randint(1, 120))))
    pool = [text for text in out if text]
    for _ in range(40):
        out.append("".join(draw.choice(pool)[:draw.randint(1, 40)] for _ in range(6)))
    return out


def main(model_path, out_path):
    model = llama_cpp.Llama(model_path, vocab_only=True, verbose=False)
    with open(out_path, "w", encoding="utf-8") as out:
        for text in texts():
            plain = None
            for special in (False, True):
                ids = model.tokenize(text.encode(), add_bos=True, special=special)
                if special and ids == plain:
                    continue        # no special token in it
                plain = ids
                out.write(json.dumps({"text": text, "special": special, "ids": ids}) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2])
