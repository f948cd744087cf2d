#!/usr/bin/env bash
# What a Raspberry Pi would run: the wheel, installed without compiler or torch in an emulated arm64 Debian
# bookworm (Python 3.11, as Raspberry Pi OS has), finds what this machine finds.
# Arguments: models to run besides the bundled ones, each with its manifest beside it.
set -euo pipefail
cd "$(dirname "$0")/.."

root=$PWD/.cache/arm64-root
python=.venv/bin/python
tools='apt-get install debootstrap qemu-user-static binfmt-support'
# Raspberry Pi 4, without dot products, and 5, with; and the part number that Linux gives for each.
declare -A parts=([cortex-a72]=0xd08 [cortex-a76]=0xd0b)

die() {
  echo "$(basename "$0"): $*" >&2
  exit 1
}

[[ $(id -u) == 0 ]] || die "needs root, to mount and chroot"
command -v debootstrap >/dev/null || die "debootstrap is missing: $tools"
# F: the kernel holds the emulator open, so that it works in a root that does not have it.
emulator=$(cat /proc/sys/fs/binfmt_misc/qemu-aarch64 2>/dev/null || true)
[[ $emulator == enabled* && $emulator =~ flags:\ [A-Z]*F ]] ||
  die "no emulator is registered for arm64 programs: $tools && update-binfmts --enable qemu-aarch64"
[[ -x $python ]] || die "$python is missing: make .venv/.dev"

# In a mount namespace of its own: nothing stays mounted after the script, not even after kill -9.
if [[ ${1:-} != --in-namespace ]]; then
  exec unshare --mount --propagation private tests/arm64.sh --in-namespace "$@"
fi
shift

mkdir -p .cache
exec 9>"$root.lock"
flock --nonblock 9 || die "another run is using $root"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

in_root() {
  PATH=/usr/sbin:/usr/bin:/sbin:/bin PYTHONPATH='' LC_ALL=C.UTF-8 chroot "$root" "$@"
}

share() { # PATH: the same file or folder, at the same place in the root, read-only
  if [[ -d $1 ]]; then
    mkdir -p "$root/$1"
  else
    mkdir -p "$(dirname "$root/$1")"
    [[ -e $root/$1 ]] || touch "$root/$1"
  fi
  mount --bind -o ro "$1" "$root/$1"
}

if [[ ! -d $root ]]; then
  echo "building $root (once; log: $root.log)"
  if findmnt --list --noheadings --output TARGET | grep -F "$root.partial/"; then
    die "something is mounted in $root.partial, which an interrupted build left: unmount it"
  fi
  rm -rf --one-file-system "$root.partial"
  debootstrap --arch=arm64 --variant=minbase --include=python3,python3-venv,python3-pip \
    bookworm "$root.partial" ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"} >"$root.log" 2>&1 ||
    { tail -n 20 "$root.log" >&2 && die "debootstrap failed (DEBIAN_MIRROR=URL names another mirror)"; }
  rm -f "$root.partial"/var/cache/apt/archives/*.deb
  mv "$root.partial" "$root"
fi

mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys" # engines look for processors in both
mkdir -p "$root/job"
mount --bind "$tmp" "$root/job"
# The emulator shows this machine's, in which ONNX Runtime looks for arm64 and crashes.
touch "$tmp/cpuinfo"
mount --bind "$tmp/cpuinfo" "$root/proc/cpuinfo"

# pip in the root asks the index that pip asks here: its settings become variables, which go along with
# proxies and certificates, and the local files that they name are shared.
while IFS='=' read -r key value; do
  name=PIP_$(tr a-z- A-Z_ <<<"${key##*.}")
  value=${value:1:-1}
  [[ $key != @(global|install).* || -v $name ]] || export "$name=${value//\\n/ }"
done < <($python -m pip config list)
{
  printf '%s\n' /etc/resolv.conf /etc/hosts /etc/ssl/certs/ca-certificates.crt
  env | grep -E '^(PIP_|SSL_CERT_FILE=|REQUESTS_CA_BUNDLE=|CURL_CA_BUNDLE=)' | grep -oE '/[^ ]+' || true
} | sed -E 's|/simple/?$||' | sort -u | while read -r path; do # a local index's files lie beside it
  [[ ! -e $path ]] || share "$path"
done

# Built outside build/, which may hold files that are no longer in the tree.
printf '[build]\nbuild_base=%s\n[egg_info]\negg_base=%s\n' "$tmp" "$tmp" >"$tmp/setup.cfg"
DIST_EXTRA_CONFIG=$tmp/setup.cfg $python -m pip wheel --quiet --no-deps -w "$tmp" .
wheel=$(basename "$tmp"/*.whl)
cp tests/arm64_detect.py "$tmp"
mkdir "$tmp/models"
models=()
for model in "$@"; do
  cp "$model" "${model%.*}.json" "$tmp/models"
  models+=("models/$(basename "$model")")
done
$python - "$tmp/picture.png" <<'END'
import sys
import cv2
from skimage.data import astronaut
cv2.imwrite(sys.argv[1], cv2.cvtColor(astronaut(), cv2.COLOR_RGB2BGR))
END

echo "installing ${wheel}[tflite] for arm64"
in_root python3 -m venv --clear /venv
in_root /venv/bin/pip install -qq --only-binary :all: "/job/${wheel}[tflite]"
in_root uname -m
in_root /venv/bin/pip list

# Here the wheel runs too, and not the tree, which may have changed since.
$python -m zipfile -e "$tmp/$wheel" "$tmp/wheel"
PYTHONPATH=$tmp/wheel $python tests/arm64_detect.py "$tmp/picture.png" "$tmp/host.json" "${models[@]/#/$tmp/}"

ran=0 failed=0
for cpu in cortex-a72 cortex-a76; do
  export QEMU_CPU=$cpu
  if ! in_root /bin/true 2>/dev/null; then
    echo "$cpu: unknown to this emulator, left out"
    continue
  fi
  for ((i = 0; i < $(nproc --all); i++)); do
    printf '%s: %s\n' processor $i 'CPU implementer' 0x41 'CPU architecture' 8 'CPU variant' 0x0 \
      'CPU part' "${parts[$cpu]}" 'CPU revision' 0
    echo
  done >"$tmp/cpuinfo"
  echo "arm64 ($cpu) against $(uname -m):"
  in_root /venv/bin/python /job/arm64_detect.py /job/picture.png "/job/$cpu.json" \
    "${models[@]/#//job/}"
  $python tests/arm64_detect.py --compare "$tmp/$cpu.json" "$tmp/host.json" || failed=1
  ran=1
done
[[ $ran == 1 ]] || die "no emulated CPU ran"
exit $failed
