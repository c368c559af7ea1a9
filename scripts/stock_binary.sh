#!/usr/bin/env bash
# Build llama.cpp's own tools, unmodified, from the source that the pinned llama-cpp-python brings; print the folder they are in.
# tests/stock runs the plug-in in them:
#     MIKV_STOCK_BIN=$(scripts/stock_binary.sh) .venv/bin/pytest tests/stock
# About 10 minutes on 2 cores the first time; kept in the user's cache folder (MIKV_CACHE_DIR).
# Needs a C++ compiler, CMake and Ninja (or: pip install cmake ninja). Arguments are targets: llama-completion llama-perplexity llama-server unless given.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="${MIKV_VENV:-$PWD/.venv}/bin:$PATH"

targets=("$@")
[ $# -gt 0 ] || targets=(llama-completion llama-perplexity llama-server)
server=OFF
case " ${targets[*]} " in *" llama-server "* | *" llama-cli "*) server=ON ;; esac

source=$(python3 scripts/fetch_headers.py --source)
build="$source-build"
{
    # shared libraries, since a plug-in can only share a ggml that is a library; nothing else is unlike the defaults but what to leave out
    cmake -S "$source" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON -DLLAMA_BUILD_SERVER=$server \
        -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_OPENSSL=OFF
    cmake --build "$build" --target "${targets[@]}"
} >&2
echo "$build/bin"
