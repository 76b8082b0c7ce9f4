#!/usr/bin/env python3
"""Writes tests/golden: float32 logits of `transformers` for the two small models, and tokenizations of `tokenizers`."""
import argparse
import json
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
LLAMA_TOKENS = 32
GEMMA_IDS = [2] + [6 + (7 * i * i + 31 * i) % 506 for i in range(1, 64)]

STRINGS = [
    "", " ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", " \n ", "a", " a", "a ", "  a  b   c  ", "In the beginning",
    "The LORD said to Moses,", "don't you're I'LL we've HE'S it'd", "hackers' jargon", "0", "12", "123", "1234",
    "1234567", "3.14159", "1,000,000", "x=1;y=2", "foo_bar(baz)[0]{1}",
    "#include <stdio.h>\nint main(void) {\n    return 0;\n}\n", "a\n\n\nb", "a \n b", "end\n", "\nstart",
    "trailing   ", "tab\tseparated\tvalues", "...", "?!", "--- *** ---", "“quoted” ‘text’", "naïve café",
    "cafe\u0301", "A\u030aB\u0327", "Ångström ÅNGSTRÖM", "Straße", "Москва и Київ",
    "Ελληνικά", "日本語のテキスト", "中文分词测试", "한국어", "العربية",
    "עברית", "ไทย", "हिन्दी", "😀", "👩‍👩‍👧‍👦 family", "🇫🇷🇯🇵",
    "e\u200bz\u00a0w\u3000", "\ufeffbom", "½ ² Ⅷ ٣", "<s>hello</s>", "<unk> < s>",
    "mixed 日本 text 42 times\n", "\u0000\u0001\u007f", "\U0001f9d1\U0001f3fd\u200d\U0001f4bb codes",
    "ſ 'ſ K's", "supercalifragilisticexpialidocious", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
]


def logits_of(folder, ids):
    import torch
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0].numpy().astype("<f4")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=TESTS / "data")
    parser.add_argument("--out", type=Path, default=TESTS / "golden")
    args = parser.parse_args()
    from tokenizers import Tokenizer
    tokenizer = Tokenizer.from_file(str(args.data / "tiny-llama" / "tokenizer.json"))
    text = (args.data / "heldout.txt").read_text(encoding="utf-8")
    jobs = {"tiny-llama": tokenizer.encode(text).ids[:LLAMA_TOKENS], "tiny-gemma3": GEMMA_IDS}
    for name, ids in jobs.items():
        logits = logits_of(args.data / name, ids)
        (args.out / f"{name}.logits.f32").write_bytes(logits.tobytes())
        (args.out / f"{name}.ids.txt").write_text(" ".join(map(str, ids)) + "\n")
        print(f"{name}: {logits.shape[0]} tokens, vocab {logits.shape[1]}, "
              f"logits {logits.min():.3f} to {logits.max():.3f}")
    with open(args.out / "tiny-llama.tok.jsonl", "w", encoding="ascii") as out:
        for string in STRINGS:
            ids = tokenizer.encode(string, add_special_tokens=False).ids
            decoded = tokenizer.decode(ids, skip_special_tokens=False)
            out.write(json.dumps({"text": string, "ids": ids, "decoded": decoded}) + "\n")
    print(f"{len(STRINGS)} tokenizations")


if __name__ == "__main__":
    main()
