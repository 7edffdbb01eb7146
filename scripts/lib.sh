# Shared by the scripts here; plain POSIX sh. Callers set ME (the script's name, for messages) and are in the root of
# the checkout. Nothing in this file changes anything.

# The state of this checkout: logs, process ids. Ignored by git.
STATE=.bananas
VENV_PYTHON=.venv/bin/python

say() {
    printf '%s: %s\n' "$ME" "$*"
}

# stop CODE MESSAGE: one line with the fix, then exit.
stop() {
    code=$1
    shift
    printf '%s: %s\n' "$ME" "$*" >&2
    exit "$code"
}

# The python that a name stands for, below shims and virtual environments: "ok PATH" or "old VERSION PATH".
describe_python() {
    "$1" -c '
import os, sys
path = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
version = "%d.%d.%d" % sys.version_info[:3]
print("ok " + path if sys.version_info >= (3, 11) else "old " + version + " " + path)' 2>/dev/null
}

# Sets PYTHON_PATH to the newest usable python (PYTHON=... chooses one), or leaves it empty and sets PYTHON_OLD to
# "VERSION PATH" of the first one that is too old.
find_python() {
    PYTHON_PATH='' PYTHON_OLD=''
    for name in ${PYTHON:-python3.14 python3.13 python3.12 python3.11 python3 /usr/bin/python3}; do
        command -v "$name" >/dev/null 2>&1 || continue
        found=$(describe_python "$name") || continue # a shim of a version that is not installed
        case $found in
            "ok "*) PYTHON_PATH=${found#ok } && return 0 ;;
            "old "*) PYTHON_OLD=${PYTHON_OLD:-${found#old }} ;;
        esac
    done
}

# 0 when the virtual environment is there and its python is new enough.
venv_works() {
    [ -x "$VENV_PYTHON" ] && case $(describe_python "$VENV_PYTHON") in "ok "*) ;; *) false ;; esac
}

# 0 when an engine answers at DOCKER_HOST or the usual socket; what went wrong is in $STATE/engine.txt otherwise.
engine_answers() {
    "$VENV_PYTHON" -c '
import docker
docker.from_env(timeout=5).version()' >/dev/null 2>"$STATE/engine.txt"
}

# The last line of a file, or of its last lines those that look like a reason.
last_words() {
    grep -iE 'error|fail|denied|refused' "$1" 2>/dev/null | tail -n 1 || true
}
