#!/usr/bin/env bash
# Makes .venv with everything ALOE needs, at the exact versions in requirements.txt. Safe to run again:
# when nothing has changed since the last run it returns at once. Called by `make setup`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PLUGIN=plugins/lerobot_policy_tiny_vla
STAMP=.venv/.setup-stamp
SYSTEM_PACKAGES=(ffmpeg libegl1 libegl-mesa0 libgl1-mesa-dri libgles2 libgl1)
export MUJOCO_GL=${MUJOCO_GL:-egl}
unset PYTHONDONTWRITEBYTECODE # so that the last step leaves torch's byte code behind, and imports are quick
if [ "$MUJOCO_GL" = osmesa ]; then SYSTEM_PACKAGES+=(libosmesa6); fi

say() { printf 'setup: %s\n' "$*"; }
fail() {
    printf 'setup: %s\n' "$@" >&2
    exit 1
}

# What the installed environment depends on. The folder counts too: editable installs hold its path.
fingerprint() {
    { pwd && cat requirements.txt pyproject.toml "$PLUGIN/pyproject.toml" scripts/setup.sh; } | sha256sum
}

# The interpreter behind a command, if it is a Python 3.12 that really runs. A version manager's shim may be
# on the PATH and yet answer "command not found".
python_3_12_behind() {
    "$1" -c 'import sys; sys.version_info[:2] == (3, 12) or sys.exit(1); print(sys._base_executable)' 2>/dev/null
}

find_python() {
    local candidate
    for candidate in python3.12 python3 /usr/bin/python3.12 /usr/local/bin/python3.12 \
        "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.12*/bin/python; do
        if PYTHON=$(python_3_12_behind "$candidate"); then return 0; fi
    done
    return 1
}

# uv knows of more places, and can fetch a Python of its own.
find_python_with_uv() {
    local candidate
    if candidate=$("${UV[@]}" python find --system 3.12 2>/dev/null) && PYTHON=$(python_3_12_behind "$candidate"); then
        return 0
    fi
    say "no Python 3.12 found; asking uv to download one"
    "${UV[@]}" python install -q 3.12 >/dev/null 2>&1 || return 1
    candidate=$("${UV[@]}" python find --system 3.12 2>/dev/null) && PYTHON=$(python_3_12_behind "$candidate")
}

find_uv() {
    local candidate
    for candidate in uv .venv-uv/bin/uv "$HOME/.local/bin/uv" "$HOME/.cargo/bin/uv" \
        "${PYENV_ROOT:-$HOME/.pyenv}"/versions/*/bin/uv; do
        if "$candidate" --version >/dev/null 2>&1; then
            UV=("$candidate")
            return 0
        fi
    done
    UV=(python3 -m uv)
    "${UV[@]}" --version >/dev/null 2>&1
}

install_uv() {
    local python=${PYTHON:-python3}
    say "installing uv, which installs the rest"
    # Debian's python3 comes without venv and pip.
    if ! "$python" -c 'import ensurepip' >/dev/null 2>&1 && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get -qq update >/dev/null 2>&1 && apt-get -qq install -y python3-venv >/dev/null 2>&1
    fi
    if "$python" -m venv .venv-uv >/dev/null 2>&1 && .venv-uv/bin/python -m pip install -q uv >/dev/null 2>&1; then
        UV=(.venv-uv/bin/uv)
        return 0
    fi
    rm -rf .venv-uv
    "$python" -m pip install -q --user uv >/dev/null 2>&1 || return 1
    UV=("$python" -m uv)
    "${UV[@]}" --version >/dev/null 2>&1
}

# Prints what is missing of the system's libraries: MuJoCo draws without a screen through EGL (or OSMesa), and
# torchcodec reads videos with FFmpeg 4 to 8. libavdevice needs all the other FFmpeg libraries.
missing_libraries() {
    "$1" - <<'PYTHON'
import ctypes
import os

def loads(*names):
    for name in names:
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return True
    return False

needs = {"FFmpeg": [f"libavdevice.so.{version}" for version in range(58, 63)]}
if os.environ["MUJOCO_GL"] == "egl":
    needs["EGL"] = ["libEGL.so.1"]
    needs["an EGL driver"] = ["libEGL_mesa.so.0", "libEGL_nvidia.so.0"]
    needs["OpenGL"] = ["libGL.so.1"]
elif os.environ["MUJOCO_GL"] == "osmesa":
    needs["OSMesa"] = ["libOSMesa.so.8", "libOSMesa.so.6"]
print(", ".join(need for need, names in needs.items() if not loads(*names)))
PYTHON
}

install_system_libraries() {
    local missing=$1 log
    if ! command -v apt-get >/dev/null; then
        fail "missing system libraries: $missing." \
            "Install them with your package manager (Debian calls them: ${SYSTEM_PACKAGES[*]}), then run this again."
    fi
    if [ "$(id -u)" != 0 ]; then
        fail "missing system libraries: $missing. Run this, then 'make setup' again:" \
            "  sudo apt-get update && sudo apt-get install -y ${SYSTEM_PACKAGES[*]}"
    fi
    say "installing system libraries (missing: $missing)"
    log=$(mktemp)
    if ! { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y \
        --no-install-recommends "${SYSTEM_PACKAGES[@]}"; } >"$log" 2>&1; then
        tail -n 3 "$log" >&2
        rm -f "$log"
        fail "apt-get could not install: ${SYSTEM_PACKAGES[*]}"
    fi
    rm -f "$log"
    missing=$(missing_libraries "$PYTHON")
    if [ -n "$missing" ]; then fail "apt-get ran, but these libraries still do not load: $missing"; fi
}

# Draws a picture and loads the video decoder: the proof that the libraries are not only there but work.
# Prints nothing, or the first error's message.
what_does_not_work() {
    local errors
    if ! errors=$(.venv/bin/python - 2>&1 >/dev/null <<'PYTHON'
import mujoco
import torchcodec.decoders  # noqa: F401

mujoco.Renderer(mujoco.MjModel.from_xml_string("<mujoco/>"), 8, 8).render()
PYTHON
    ); then
        printf '%s\n' "$errors" | grep -m 1 -E '^[A-Za-z_.]*(Error|Exception)' ||
            printf 'Python stopped without saying why'
    fi
}

main() {
    local now missing problem
    now=$(fingerprint)
    if [ -x .venv/bin/aloe ] && [ "$(cat "$STAMP" 2>/dev/null)" = "$now" ]; then
        say "up to date"
        return 0
    fi
    if [ "$(uname -s)-$(uname -m)" != Linux-x86_64 ]; then
        fail "requirements.txt holds versions for Linux on x86_64, not for $(uname -s) on $(uname -m)." \
            "With Python 3.12 you may try: pip install -e '.[dev]' && pip install --no-deps -e $PLUGIN"
    fi

    PYTHON=
    find_python || PYTHON=
    if ! find_uv && ! install_uv; then
        fail "uv is not there and could not be installed (needs a network and python3 with venv or pip)." \
            "Run this, then 'make setup' again:  sudo apt-get install -y python3-venv    (or install uv by hand)"
    fi
    if [ -z "$PYTHON" ] && ! find_python_with_uv; then
        fail "no Python 3.12 that runs, and none could be downloaded." \
            "Install one ('sudo apt-get install python3.12 python3.12-venv', 'pyenv install 3.12' or" \
            "'conda create -n py312 python=3.12' and activate it), and run this again."
    fi
    missing=$(missing_libraries "$PYTHON")
    if [ -n "$missing" ]; then install_system_libraries "$missing"; fi

    if ! python_3_12_behind .venv/bin/python >/dev/null; then
        say "making .venv with $("$PYTHON" --version)"
        rm -rf .venv
        "${UV[@]}" venv -q --python "$PYTHON" .venv || fail "could not make .venv"
        say "the next step takes 6 GB of disk, and about 3 GB of downloads if it is the first time"
    fi
    rm -f "$STAMP"
    say "installing the packages in requirements.txt"
    "${UV[@]}" pip install -q --python .venv/bin/python --require-hashes -r requirements.txt ||
        fail "the packages could not be installed; the reason is above. Running this again goes on where it stopped."
    say "installing aloe and its LeRobot plugin from this folder"
    "${UV[@]}" pip install -q --python .venv/bin/python --no-deps --no-build-isolation -e . -e "$PLUGIN" ||
        fail "aloe itself could not be installed; the reason is above."
    say "trying to draw a picture and to load the video decoder"
    problem=$(what_does_not_work)
    if [ -n "$problem" ]; then
        fail "installed, but this does not work: $problem" \
            "On Debian and Ubuntu this brings what is needed: sudo apt-get install -y ${SYSTEM_PACKAGES[*]}" \
            "If only drawing fails, MUJOCO_GL=osmesa (package libosmesa6) draws without any graphics driver."
    fi
    printf '%s\n' "$now" >"$STAMP"
    say "done in $SECONDS s; 'make test' tests it, 'make quickstart' shows it"
}

main
