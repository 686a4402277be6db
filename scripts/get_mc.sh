#!/bin/sh
# Puts the real MinIO client in .tools/bin/minio-client, unless there is one on PATH.
set -eu

SUITE=trixie
PACKAGE=minio-client
UPDATE_BOUND_S=180

usage() {
    cat <<'HELP'
Usage: scripts/get_mc.sh [--help]

Prints the path of the real MinIO client (mc). When none is on PATH, fetches Debian's package
minio-client into .tools/bin/ of this repository: signed by Debian, from the mirror this machine
already uses, without installing anything and without root. Safe to repeat.

Exit status: 0 there is one, 1 none could be had (the reason is printed).
HELP
}

fail() {
    echo "get_mc: $1" >&2
    exit 1
}

is_minio_client() {
    version=$("$1" --version 2>/dev/null) || return 1
    case $version in
        *"Midnight Commander"*) return 1 ;;
        *go1*) return 0 ;;
    esac
    return 1
}

print_if_there() {
    for name in mc mcli minio-client "$binary"; do
        path=$(command -v "$name") || continue
        if is_minio_client "$path"; then
            echo "$path"
            exit 0
        fi
    done
}

# The archive's addresses: those from which this machine takes its own release's `main`.
mirrors() {
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    for file in /etc/apt/sources.list.d/*.sources; do
        [ -f "$file" ] || continue
        grep -v '^#' "$file" | awk -v suite="$codename" '
            function flush() {
                if ((" " suites " ") ~ (" " suite " ") && (" " components " ") ~ / main /) print uris
                uris = suites = components = ""
            }
            /^[[:space:]]*$/ { flush(); next }
            { value = $0; sub(/^[^:]*:[[:space:]]*/, "", value) }
            /^URIs:/ { uris = value }
            /^Suites:/ { suites = value }
            /^Components:/ { components = value }
            END { flush() }'
    done
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
        [ -f "$file" ] || continue
        sed -n 's/^deb  *\(\[[^]]*\]\)\{0,1\} *//p' "$file" |
            awk -v suite="$codename" '$2 == suite && / main( |$)/ { print $1 }'
    done
}

keyring() {
    for file in /usr/share/keyrings/debian-archive-keyring.gpg \
        /usr/share/keyrings/debian-archive-keyring.pgp; do
        if [ -r "$file" ]; then
            echo "$file"
            return
        fi
    done
    fail "no Debian keyring; install debian-archive-keyring"
}

# apt's own configuration but for the proxy is left out: nothing outside $work is read or written.
configure_apt() {
    mkdir -p "$work/state/lists/partial" "$work/cache/archives/partial"
    : >"$work/state/status"
    {
        apt-config dump | grep -E '^Acquire::(https?|Retries|ForceIPv[46])\b' || true
        cat <<CONF
Dir::Etc::main "/dev/null";
Dir::Etc::parts "/dev/null";
Dir::Etc::sourcelist "$work/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::State "$work/state";
Dir::State::status "$work/state/status";
Dir::Cache "$work/cache";
APT::Sandbox::User "root";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
Acquire::http::Timeout "20";
Acquire::https::Timeout "20";
CONF
    } >"$work/apt.conf"
    export APT_CONFIG="$work/apt.conf"
}

fetch_from() {
    echo "deb [arch=$arch signed-by=$keys] $1 $SUITE main" >"$work/sources.list"
    echo "get_mc: asking $1 for $SUITE's $PACKAGE" >&2
    (cd "$work" &&
        timeout "$UPDATE_BOUND_S" apt-get -qq update &&
        timeout "$UPDATE_BOUND_S" apt-get -qq download "$PACKAGE") >&2
}

place() {
    dpkg -x "$work"/"$PACKAGE"_*.deb "$work/tree"
    found=
    for file in "$work/tree/usr/bin/minio-client" "$work/tree/usr/bin/mcli" \
        "$work/tree/usr/bin/mc"; do
        [ -x "$file" ] && found=$file && break
    done
    [ -n "$found" ] || fail "the package holds no client"
    is_minio_client "$found" || fail "the client does not run here (it needs glibc 2.34)"
    mkdir -p "$tools/bin"
    mv -f "$found" "$binary"
}

case ${1:-} in
    "") ;;
    -h | --help)
        usage
        exit 0
        ;;
    *)
        usage >&2
        exit 1
        ;;
esac

tools=$(cd "$(dirname "$0")/.." && pwd)/.tools
binary=$tools/bin/minio-client
print_if_there

for tool in apt-get apt-config dpkg timeout; do
    command -v "$tool" >/dev/null || fail "needs Debian's tools, and $tool is missing"
done
arch=$(dpkg --print-architecture)
keys=$(keyring)
sources=$(mirrors)
[ -n "$sources" ] || fail "no Debian archive in /etc/apt; is this Debian?"

mkdir -p "$tools"
work=$(mktemp -d "$tools/get_mc.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
configure_apt
for mirror in $sources; do
    if fetch_from "$mirror"; then
        place
        echo "$binary"
        exit 0
    fi
done
fail "could not fetch $PACKAGE; is there a network, and does $keys hold $SUITE's key?"
