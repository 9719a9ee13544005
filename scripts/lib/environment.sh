# Sourced by the scripts: makes .venv, installs the tested set, and does nothing when that is done.
# After `prepare_environment`, $PYTHON_BIN is the environment's interpreter.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
VENV="$ROOT/.venv"
PYTHON_BIN="$VENV/bin/python"
STAMP="$VENV/installed"

say() { printf '%s\n' "$*" >&2; }

find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11 python3.14 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return 0
    fi
  done
  say "error: Python 3.11 or newer is needed and was not found; install it, or name one: PYTHON=/path/to/python $0"
  return 2
}

# What the environment has to match: the two files, and the folder it was made in.
wanted_stamp() {
  "$1" - "$ROOT" <<'PY'
import hashlib, pathlib, sys
root = pathlib.Path(sys.argv[1])
content = b"".join((root / name).read_bytes() for name in ("pyproject.toml", "constraints.txt"))
print(hashlib.sha256(content + str(root).encode()).hexdigest())
PY
}

make_venv() {
  local python
  python="$(find_python)" || return 2
  say "Making .venv with $("$python" --version)."
  if ! "$python" -m venv --clear "$VENV"; then
    say "error: $python cannot make an environment; on Debian or Ubuntu install its -venv package."
    return 2
  fi
}

install_packages() {
  say "Installing the packages of pyproject.toml at the versions of constraints.txt."
  if ! { command -v nvidia-smi && nvidia-smi -L; } >/dev/null 2>&1; then
    say "No NVIDIA GPU found: with PyTorch's CPU index in PIP_EXTRA_INDEX_URL the download is far"
    say "smaller; pytorch.org/get-started names it, README.md shows how."
  fi
  # pip's own lines, less the chatter: each download with its size, and what goes wrong.
  if ! "$PYTHON_BIN" -m pip install --disable-pip-version-check --progress-bar off \
    -c "$ROOT/constraints.txt" -e "$ROOT[dev]" |
    { grep --line-buffered -E '^ *(Downloading|Installing|Building)|[Ee]rror' >&2 || true; }; then
    say "error: the installation failed; pip's reason is above. Nothing is marked as installed; run again."
    return 1
  fi
}

prepare_environment() {
  if ! "$PYTHON_BIN" -c '' 2>/dev/null; then
    make_venv
  fi
  if ! "$PYTHON_BIN" -c 'import pip' 2>/dev/null; then
    "$PYTHON_BIN" -m ensurepip
  fi
  local wanted
  wanted="$(wanted_stamp "$PYTHON_BIN")"
  if [ "$(cat "$STAMP" 2>/dev/null || true)" = "$wanted" ]; then
    return 0
  fi
  install_packages
  printf '%s\n' "$wanted" >"$STAMP"
  say "Installed into .venv."
}
