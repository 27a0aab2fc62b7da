#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Everything that wants a CUDA machine, in less than nine minutes and without a network:
#
#   benchmarks/on_gpu.sh [WHEELS] [--dry]
#
# builds with CUDA, runs the tests on the GPU, measures the operators beside their rivals and ReSAD
# end to end, and prints the table last. JSON, table and log go to $OUT, or to where it was called.
#
# The machine needs python3 with torch, timm, numpy, scipy, scikit-learn, pytest, pytest-benchmark,
# pybind11 and scikit-build-core, and nvcc. What else the package wants is installed from WHEELS, a
# folder of wheels; without it the steps that want it are shorter, and say so. PYTHON names another
# interpreter, FUNDAD_COMMIT the commit where there is no git, SECONDS_IN_ALL another limit.
#
# --dry rehearses every step at small sizes on the CPU, without CUDA. The exit status is 0 if every
# step ended well.
set -uo pipefail

wheels="" dry=""
for argument in "$@"; do
  case "$argument" in
    --dry) dry=1 ;;
    -h | --help) sed -n '3,17s/^# \{0,1\}//p' "$0" && exit 0 ;;
    -*) echo "on_gpu.sh: unknown option $argument; use [WHEELS] [--dry]" >&2 && exit 2 ;;
    *) wheels=$argument ;;
  esac
done
if [ -n "$wheels" ] && ! wheels=$(cd "$wheels" 2>/dev/null && pwd); then
  echo "on_gpu.sh: the folder of wheels is not there" >&2
  exit 2
fi
out=${OUT:-$PWD}
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
python=$(command -v "${PYTHON:-python3}") || { echo "on_gpu.sh: no ${PYTHON:-python3}" >&2; exit 2; }
deadline=$((SECONDS + ${SECONDS_IN_ALL:-520}))
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

# A venv above the machine's own packages, so that nothing of the machine is changed. The machine's
# interpreter may live in a venv as well: then its packages come by the path file.
"$python" -m venv --system-site-packages --without-pip "$work/venv" || exit 1
py=$work/venv/bin/python
site=$("$py" -c "import sysconfig; print(sysconfig.get_paths()['purelib'])")
"$python" -c "import sysconfig; print(sysconfig.get_paths()['purelib'])" >"$site/machine.pth"
PATH="$work/venv/bin:$PATH:$(dirname "$python"):/usr/local/cuda/bin"
export PATH PYTHONUNBUFFERED=1 wheels dry out python root work py

# step NAME LIMIT: runs a function for LIMIT seconds at most, or for what is left of all. What has to
# stop is interrupted first, so that pytest still says what it had done.
step() {
  local name=$1 limit=$2 began=$SECONDS left=$((deadline - SECONDS)) rc=124 last="no time was left"
  [ "$limit" -lt "$left" ] && left=$limit
  if [ "$left" -ge 5 ]; then
    echo "== $name, at most $left s"
    timeout -s INT -k 10 "$left" bash -c "$name" >"$work/log" 2>&1
    rc=$?
    { echo "== $name, exit status $rc" && cat "$work/log"; } >>"$out/log.txt"
    last=$(grep -v '^[[:space:]]*$' "$work/log" | tail -n 1 | tr '\t|' '  ' | cut -c 1-160)
    [ "$rc" = 124 ] && last="stopped after $left s: $last"
  fi
  printf '%s\t%s\t%s\t%s\n' "$name" "$rc" "$((SECONDS - began))" "$last" >>"$work/steps"
  echo "   $((SECONDS - began)) s, exit status $rc: $last"
  [ "$rc" = 0 ] || failed=1
  return "$rc"
}

pip_install() { "$python" -m pip --python "$py" --disable-pip-version-check install --no-index "$@"; }

# Away from the sources, so that what was installed is used.
run_pytest() {
  cd "$work" && "$py" -m pytest -c "$root/pyproject.toml" --rootdir "$root" \
    -p no:cacheprovider -q "$@"
}

prepare() {
  local absent=() pair name
  for pair in pydantic typer rich tqdm yaml:pyyaml tifffile imagecodecs simplejpeg hypothesis \
    skimage:scikit-image pyarrow safetensors huggingface_hub cv2:opencv-python-headless; do
    "$py" -c "import importlib.util as u, sys; sys.exit(not u.find_spec('${pair%%:*}'))" ||
      absent+=("${pair##*:}")
  done
  command -v cmake >/dev/null || absent+=(cmake)
  command -v ninja >/dev/null || command -v make >/dev/null || absent+=(ninja)
  if [ "${#absent[@]}" = 0 ]; then
    echo "nothing is absent"
  elif [ -z "$wheels" ]; then
    echo "absent, and no folder of wheels was given: ${absent[*]}"
  else
    local without=()
    for name in "${absent[@]}"; do
      pip_install -q --find-links "$wheels" "$name" || without+=("$name")
    done
    echo "installed from wheels: ${#absent[@]}, but not: ${without[*]:-}"
  fi
}

build() {
  local cuda=ON level
  [ -n "$dry" ] && cuda=OFF
  level=$("$py" -c "
import torch
print(*(torch.cuda.get_device_capability() if torch.cuda.is_available() else (9, 0)), sep='')")
  CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}
  export CMAKE_BUILD_PARALLEL_LEVEL
  pip_install --no-deps --no-build-isolation "$root" -v -C cmake.define.FUNDAD_CUDA=$cuda \
    -C "cmake.define.CMAKE_CUDA_ARCHITECTURES=$level-real" &&
    cd "$work" && "$py" -c "
from fundad_fast import ops
built = ops.build()
assert '$cuda' == 'OFF' or built['CUDA'] != 'no', built
print(', '.join(f'{key} {value}' for key, value in built.items()))"
}

operator_tests() {
  local files=("$root"/tests/test_ops*.py "$root"/tests/test_n*.py)
  [ -n "$dry" ] && files=("$root/tests/test_ops_poisson.py")
  run_pytest --continue-on-collection-errors "${files[@]}"
}

races() {
  local options=(--device cuda --rounds 10 --seconds 4)
  [ -n "$dry" ] && options=(--device cpu --dry --rounds 2)
  run_pytest --benchmark-only --benchmark-columns=median --results "$out" "${options[@]}" \
    "$root/benchmarks/test_operators.py" "$root/benchmarks/test_on_gpu.py"
}

end_to_end() {
  local options=(--device cuda --seconds 2 --compile)
  [ -n "$dry" ] && options=(--device cpu --dry)
  cd "$work" && "$py" "$root/benchmarks/end_to_end.py" "${options[@]}" -o "$out/end_to_end.json"
}

# What has its turn last may be cut short. Two files want no GPU, and take long.
other_tests() {
  local file files=()
  for file in "$root"/tests/test_*.py; do
    case "$file" in
      */test_ops*.py | */test_n*.py | */test_report_browser.py | */test_cuda_on_cpu.py) ;;
      *) files+=("$file") ;;
    esac
  done
  [ -n "$dry" ] && files=("$root/tests/test_spill.py")
  run_pytest --continue-on-collection-errors "${files[@]}"
}

export -f pip_install run_pytest prepare build operator_tests races end_to_end other_tests
rm -f "$out"/races-*.{json,md} "$out"/{end_to_end.json,log.txt}
echo "on_gpu.sh: results go to $out"
step prepare 60
if step build 200; then
  step operator_tests 120
  step end_to_end 120
  step races 130
  step other_tests 120
fi

"$py" - "$work/steps" "$out/steps.json" "$SECONDS" <<'PY'
import json
import sys

figures = []
for line in open(sys.argv[1]):
    name, code, seconds, last = line.rstrip("\n").split("\t")
    note = last if code == "0" else f"exit status {code}: {last}"
    figures.append({"name": name, "value": float(seconds), "unit": "s", "bar": "", "note": note})
content = {"title": "Steps", "settings": {"seconds in all": sys.argv[3]}, "environment": {}}
with open(sys.argv[2], "w") as file:
    json.dump({**content, "figures": figures}, file, indent=1)
PY
runs=()
for file in "$out"/steps.json "$out"/races-*.json "$out/end_to_end.json"; do
  [ -f "$file" ] && runs+=("$file")
done
rm -f "$out"/races-*.md # it is a part of table.md
"$py" "$root/benchmarks/table.py" "${runs[@]}" | tee "$out/table.md"
exit "$failed"
