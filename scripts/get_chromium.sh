#!/bin/sh
# Puts Debian's Chromium in .tools/bin/chromium, unless there is one on PATH.
set -eu

BOUND_S=600
FONT=fonts-dejavu-core

usage() {
    cat <<'HELP'
Usage: scripts/get_chromium.sh [--help]

Prints the path of Chromium, or of Chrome. When none is on PATH, fetches Debian's package chromium, and those
of the packages it needs that this machine has not, into .tools/chromium of this repository: signed by Debian,
from the archives this machine already uses, without installing anything and without root (some 130 MB, up to
250 MB on a bare machine). Safe to repeat.

Exit status: 0 there is one, 1 none could be had (the reason is printed).
HELP
}

fail() {
    echo "get_chromium: $1" >&2
    exit 1
}

runs() {
    "$1" --version >/dev/null 2>&1
}

print_if_there() {
    for name in chromium chromium-browser google-chrome google-chrome-stable "$binary"; do
        path=$(command -v "$name") || continue
        if runs "$path"; then
            echo "$path"
            exit 0
        fi
    done
}

# Lists, downloads and locks are in $work; the machine's own sources, keys and packages are only read.
configure_apt() {
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
    cat >"$work/apt.conf" <<CONF
Dir::State::lists "$work/lists";
Dir::Cache "$work/cache";
Debug::NoLocking "true";
APT::Sandbox::User "root";
Acquire::Languages "none";
CONF
    export APT_CONFIG="$work/apt.conf"
}

fetch() {
    echo "get_chromium: asking this machine's Debian archives for chromium" >&2
    timeout "$BOUND_S" apt-get -qq update >&2 &&
        timeout "$BOUND_S" apt-get -qq -y --no-install-recommends --download-only --reinstall install chromium chromium-common $FONT >&2
}

place() {
    rm -rf "$tools/chromium"
    for package in "$work"/cache/archives/*.deb; do
        dpkg -x "$package" "$work/tree"
    done
    [ -x "$work/tree/usr/lib/chromium/chromium" ] || fail "the package holds no Chromium"
    mv "$work/tree" "$tools/chromium"
    mkdir -p "$tools/bin"
    cat >"$binary" <<'RUN'
#!/bin/sh
# Made by scripts/get_chromium.sh.
root=$(cd "$(dirname "$0")/../chromium" && pwd)
libraries=$(find "$root/usr/lib" "$root/lib" -maxdepth 2 -type d \( -name '*-linux-gnu*' -o -name pulseaudio \) \
    2>/dev/null | tr '\n' ':') # PulseAudio's own ones are in a directory of theirs
export LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:-}"
[ -d /etc/fonts ] || export FONTCONFIG_SYSROOT="$root"
exec "$root/usr/lib/chromium/chromium" "$@"
RUN
    chmod +x "$binary"
    runs "$binary" || fail "Chromium does not run here: $("$binary" --version 2>&1 | head -n 1)"
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
binary=$tools/bin/chromium
print_if_there

for tool in apt-get dpkg timeout find; do
    command -v "$tool" >/dev/null || fail "needs Debian's tools, and $tool is missing"
done
mkdir -p "$tools"
work=$(mktemp -d "$tools/get_chromium.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
configure_apt
fetch || fail "could not fetch chromium; is this Debian, and is there a network?"
place
echo "$binary"
