#!/usr/bin/env bash
# Format and lint checks of everything; --fix formats instead of complaining.
# Needs ruff, mypy and clang-format: pip install -e '.[dev]'. MIKV_VENV names the environment, else .venv or the path.
set -uo pipefail
cd "$(dirname "$0")/.."
export PATH="${MIKV_VENV:-$PWD/.venv}/bin:$PATH"

faults=0
python=(mikv_cpp scripts tests docs/examples)
check() {
    echo "- $*"
    "$@" || faults=$((faults + 1))
}

mapfile -d '' cpp_files < <(find native tests/native docs/examples \( -name '*.h' -o -name '*.c' -o -name '*.cpp' \) -print0)
if [ "${1:-}" = --fix ]; then
    clang-format -i "${cpp_files[@]}"
    ruff check --quiet --fix "${python[@]}"
    ruff format --quiet "${python[@]}"
fi
echo "- clang-format of ${#cpp_files[@]} files"
clang-format --dry-run -Werror "${cpp_files[@]}" 2>&1 | grep -E 'error:' | cut -d: -f1 | sort | uniq -c
[ "${PIPESTATUS[0]}" -eq 0 ] || faults=$((faults + 1))
check ruff check "${python[@]}"
check ruff format --check "${python[@]}"
check mypy
check python3 scripts/layers.py
check python3 scripts/size.py
echo "lint: $faults of 6 checks failed"
[ "$faults" -eq 0 ]
