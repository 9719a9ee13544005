# Sourced by the scripts: makes .venv, installs the tested set, and does nothing when that is done.
# After `prepare_environment [EXTRA]`, $PYTHON_BIN is the environment's interpreter; `dev` brings what
# the tests need beside the project itself.

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

# uv takes PyTorch's CPU build by itself where there is no card; pip takes the one of its index.
install_with_uv() {
  command -v uv >/dev/null || return 1
  uv pip install --python "$PYTHON_BIN" --torch-backend auto --no-progress \
    -c "$ROOT/constraints.txt" -e "$1" && return 0
  say "uv could not install it (above); pip tries next."
  return 1
}

install_with_pip() {
  if ! "$PYTHON_BIN" -c 'import pip' 2>/dev/null; then
    "$PYTHON_BIN" -m ensurepip
  fi
  if ! { command -v nvidia-smi && nvidia-smi -L; } >/dev/null 2>&1; then
    say "No NVIDIA GPU found: with uv on the PATH, or PyTorch's CPU index in PIP_EXTRA_INDEX_URL, the"
    say "download is far smaller; pytorch.org/get-started names it, README.md shows how."
  fi
  # pip's own lines, less the chatter: each download with its size, and what goes wrong.
  "$PYTHON_BIN" -m pip install --disable-pip-version-check --progress-bar off \
    -c "$ROOT/constraints.txt" -e "$1" |
    { grep --line-buffered -E '^ *(Downloading|Installing|Building)|[Ee]rror' >&2 || true; }
}

prepare_environment() {
  local extra="${1:-}" wanted
  if ! "$PYTHON_BIN" -c '' 2>/dev/null; then
    make_venv
  fi
  wanted="$(wanted_stamp "$PYTHON_BIN")"
  case "$(cat "$STAMP" 2>/dev/null || true)" in
    "$wanted $extra" | "$wanted dev") return 0 ;;
    "$wanted feedback") [ -n "$extra" ] || return 0 ;;
  esac
  say "Installing the packages of pyproject.toml at the versions of constraints.txt."
  if ! install_with_uv "$ROOT${extra:+[$extra]}" && ! install_with_pip "$ROOT${extra:+[$extra]}"; then
    say "error: the installation failed; the reason is above. Nothing is marked as installed; run again."
    return 1
  fi
  printf '%s\n' "$wanted $extra" >"$STAMP"
  say "Installed into .venv."
}
