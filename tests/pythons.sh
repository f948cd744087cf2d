#!/usr/bin/env bash
# The wheel, installed with its runtime dependencies alone, in each Python that is named: finds a face, then the
# runtime's tests; in the first Python for which there are the lowest versions of them with those, too. Needs an index
# to install from.
# Arguments: interpreters; default: those supported, of this machine.
set -euo pipefail
cd "$(dirname "$0")/.."

supported=(3.10 3.11 3.12 3.13)
tests=(test_{runtime,tracking,uses,video}.py)
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cp -r tests pyproject.toml "$tmp"

python=$PWD/.venv/bin/python
$python -m build --no-isolation --outdir "$tmp" . >"$tmp/log" 2>&1 || { cat "$tmp/log" >&2; exit 1; }
$python - "$tmp/photo.png" <<'END'
import sys
import cv2
from skimage.data import astronaut
cv2.imwrite(sys.argv[1], cv2.cvtColor(astronaut(), cv2.COLOR_RGB2BGR))
END

interpreters=("$@")
if [[ $# == 0 ]]; then
  for version in "${supported[@]}"; do
    found=
    for candidate in "python$version" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python; do
      "$candidate" --version >/dev/null 2>&1 && found=$candidate && break # pyenv has names that do not run
    done
    [[ $found ]] && interpreters+=("$found") || echo "python$version: not on this machine, left out"
  done
fi
[[ ${#interpreters[@]} -gt 0 ]] || { echo "no Python of these: ${supported[*]}" >&2; exit 1; }

# What pyproject.toml allows at least: "numpy>=1.24" as "numpy==1.24.*".
$python - >"$tmp/lowest.txt" <<'END'
from pip._vendor import tomli # in any pip; tomllib comes with Python 3.11
project = tomli.load(open("pyproject.toml", "rb"))["project"]
for needed in project["dependencies"] + project["optional-dependencies"]["video"]:
    print(needed.replace(">=", "==") + ".*")
END

try_wheel() { # interpreter, then options for pip
  interpreter=$1 && shift
  "$interpreter" --version
  rm -rf "$tmp/venv"
  "$interpreter" -m venv "$tmp/venv"
  bin=$tmp/venv/bin
  $bin/pip install --quiet --disable-pip-version-check "$@" "$tmp"/*.whl
  $bin/pip list --disable-pip-version-check | grep -iE '^(numpy|opencv|onnxruntime)'
  $bin/img2pose-edge --version
  [[ $($bin/img2pose-edge detect "$tmp/photo.png") == *": 1 face"* ]] || { echo "no face found" >&2; exit 1; }
  $bin/python -W error -m compileall -q -f "$tmp"/venv/lib/python*/site-packages/img2pose_edge # training, too
  $bin/pip install --quiet --disable-pip-version-check "$@" pytest pytest-benchmark hypothesis pillow scikit-image av
  # The other engines are not installed; nothing is timed.
  $bin/pytest --show-capture=no -k 'not openvino and not tflite and not engine_options and not engine_that and not default_model_follows and not light' "${tests[@]}"
}

cd "$tmp/tests" # away from the tree, which must not be imported
for interpreter in "${interpreters[@]}"; do
  try_wheel "$interpreter"
done
for interpreter in "${interpreters[@]}"; do
  if "$interpreter" -c 'import sys; sys.exit(sys.version_info >= (3, 12))'; then
    try_wheel "$interpreter" --constraint "$tmp/lowest.txt"
    exit
  fi
done
echo "no Python below 3.12, for which there are the lowest versions: not tried" >&2
