# Shared by the scripts here; plain POSIX sh. Callers set ME (the script's name, for messages) and are in the root of
# the checkout. Nothing in this file changes anything on disk.

# The state of this checkout: logs, process ids, the engine that was found. Ignored by git.
STATE=.bananas
VENV_PYTHON=.venv/bin/python
SOCKET=/var/run/docker.sock
# dockerd and iptables are there, and an ordinary user's PATH often is without them.
PATH=$PATH:/usr/sbin:/sbin

# Exit codes of scripts/setup that mean: all is well but for the engine.
NO_ENGINE=13 ENGINE_NOT_READY=14 ENGINE_DENIED=18

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

have() {
    command -v "$1" >/dev/null 2>&1
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
        have "$name" || continue
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

# Where an engine may answer: DOCKER_HOST and nothing else when it is set, else the usual sockets that are there.
engine_candidates() {
    if [ -n "${DOCKER_HOST:-}" ]; then
        printf '%s\n' "$DOCKER_HOST"
        return 0
    fi
    own=${XDG_RUNTIME_DIR:-/run/user/$(id -u)}
    for path in "$SOCKET" "$own/docker.sock" /run/podman/podman.sock "$own/podman/podman.sock"; do
        [ ! -S "$path" ] || printf 'unix://%s\n' "$path"
    done
}

# probe_engine PYTHON ADDRESS: prints "ok", "denied", "later" (TLS and ssh need packages that may not be here yet), or
# why nothing answers. Needs only the standard library.
probe_engine() {
    "$1" -I -c '
import os, re, socket, sys
address = sys.argv[1]
unix, tcp = re.fullmatch("unix://(/.+)", address), re.fullmatch("(?:tcp|http)://([^/:]+):([0-9]+)/?", address)
if not unix and (not tcp or os.environ.get("DOCKER_TLS_VERIFY")):
    sys.exit(print("later"))
try:
    if unix:
        link = socket.socket(socket.AF_UNIX)
        link.settimeout(5)
        link.connect(unix[1])
    else:
        link = socket.create_connection((tcp[1], int(tcp[2])), 5)
    link.sendall(b"GET /_ping HTTP/1.0\r\nHost: engine\r\n\r\n")
    first = link.recv(4096).decode("latin-1").split("\r\n")[0]
    print("ok" if " 200 " in first else "not a Docker API: " + (first[:80] or "no answer"))
except PermissionError:
    print("denied")
except OSError as e:
    print(e.strerror or e)' "$2"
}

# Sets ENGINE to the first address that answers; else DENIED to one that this user may not open, and ENGINE_SAID.
find_engine() {
    ENGINE='' DENIED='' ENGINE_SAID=''
    for address in $(engine_candidates); do
        said=$(probe_engine "$1" "$address")
        case $said in
            ok | later) ENGINE=$address && return 0 ;;
            denied) DENIED=${DENIED:-$address} ;;
        esac
        ENGINE_SAID=${ENGINE_SAID:-$address: $said}
    done
}

# The group whose members may use the engine.
engine_group() {
    group=docker
    [ ! -S "$SOCKET" ] || group=$(stat -L -c %G "$SOCKET")
    printf '%s\n' "$group"
}

is_member() { # is_member GROUP NAMES...
    wanted=$1
    shift
    for name in "$@"; do [ "$name" != "$wanted" ] || return 0; done
    return 1
}

# enter_engine_group ARGUMENTS...: a user who was put into the engine's group after this session began runs the same
# script again inside it; whoever is in the group already, or not in it at all, goes on.
enter_engine_group() {
    if [ "$(id -u)" = 0 ] || [ -n "${DOCKER_HOST:-}${ENTERED_GROUP:-}" ] || [ -w "$SOCKET" ]; then return 0; fi
    group=$(engine_group)
    user=$(id -un 2>/dev/null) || return 0
    # shellcheck disable=SC2046 # a list of names
    is_member "$group" $(id -nG "$user") || return 0
    # shellcheck disable=SC2046
    if is_member "$group" $(id -nG) || ! have sg; then return 0; fi
    say "entering the group $group with sg, since this session began before you were in it"
    command="exec sh scripts/$ME"
    for argument in "$@"; do
        command="$command '$(printf '%s' "$argument" | sed "s/'/'\\\\''/g")'"
    done
    export ENTERED_GROUP=1
    exec sg "$group" -c "$command"
}

# After scripts/setup: what it found is what docker-py and our own programs use.
use_engine() {
    if [ -z "${DOCKER_HOST:-}" ] && [ -f "$STATE/engine.env" ]; then
        DOCKER_HOST=$(sed -n 's/^DOCKER_HOST=//p' "$STATE/engine.env")
        export DOCKER_HOST
    fi
}

# With BANANAS_WHEELS, pip and uv take packages from that folder and ask no index.
use_wheels() {
    [ -n "${BANANAS_WHEELS:-}" ] || return 0
    BANANAS_WHEELS=$(cd "$BANANAS_WHEELS" 2>/dev/null && pwd -P) ||
        stop 19 "BANANAS_WHEELS is not a folder; make one with: sh scripts/wheels (where an index is reachable)"
    set -- "$BANANAS_WHEELS"/*.whl
    [ -f "$1" ] || stop 19 "BANANAS_WHEELS=$BANANAS_WHEELS holds no wheels; make them with: sh scripts/wheels"
    export BANANAS_WHEELS PIP_NO_INDEX=1 PIP_FIND_LINKS="$BANANAS_WHEELS"
    export UV_OFFLINE=1 UV_NO_INDEX=1 UV_FIND_LINKS="$BANANAS_WHEELS"
}

# The last line of a file, or of its last lines those that look like a reason.
last_words() {
    grep -iE 'error|fail|denied|refused' "$1" 2>/dev/null | tail -n 1 || true
}
