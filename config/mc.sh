# shellcheck shell=sh disable=SC2034,SC2154 # some variables are for the scripts, others from them
# What minio-webhook.sh and minio-nats.sh share: messages, settings, and MinIO's client (mc).
# Before they source it, they set:
#   root         the repository's folder
#   SCRIPT       its name, for messages
#   TARGET_HINT  what to do when MinIO can't reach the target
#   WITHOUT_MC   the end of the message that there is no mc
set -f # words such as bucket names are split; MINIO_BUCKET=* never means the files of this folder
umask 077

NOW_ID=REPLICATOR_NOW # also the suffix of MINIO_NOTIFY_WEBHOOK_*: letters, digits and _ only
QUEUE_ID=REPLICATOR_QUEUE
QUEUE_LIMIT_EVENTS=100000
EVENTS=put,delete
ALIAS=replicator
POLL_S=1
SECRET_MAX_BYTES=16384
NEWLINE='
'

work='' child='' out='' has_globs=no
secret='' # is masked in what mc said, as MINIO_SECRET_KEY is

say() { printf '%s\n' "$*"; }
warn() { printf '%s: %s\n' "$SCRIPT" "$*" >&2; }
fail() {
    warn "$*"
    exit 1
}
misuse() {
    warn "$*"
    exit 2
}

# --- settings ---------------------------------------------------------------------------------

env_file=''
for candidate in "$root/.env" ./.env; do
    [ ! -f "$candidate" ] || env_file=$candidate
done

from_file() {
    [ -n "$env_file" ] || return 0
    found=$(sed -n "s/^[[:space:]]*\(export[[:space:]]\{1,\}\)\{0,1\}$1[[:space:]]*=[[:space:]]*//p" "$env_file" |
        tail -n 1 | tr -d '\r')
    case $found in
        \"*) found=${found#?} && found=${found%%\"*} ;;
        \'*) found=${found#?} && found=${found%%\'*} ;;
        *) found=$(printf '%s' "$found" | sed 's/[[:space:]]#.*//; s/[[:space:]]*$//') ;;
    esac
    printf '%s' "$found"
}

# Sets the shell variable $1 from the environment, the file, or to $2; it is not exported.
load() {
    eval "value=\${$1:-}"
    [ -n "$value" ] || value=$(from_file "$1")
    [ -n "$value" ] || value=${2:-}
    eval "$1=\$value"
}

# As load; or what is in the file that $1_FILE names, from the current folder.
load_secret() {
    load "$1_FILE"
    secret_file=$value
    load "$1"
    [ -n "$secret_file" ] || return 0
    if [ -n "$value" ]; then
        problem "$1 and $1_FILE are both set: leave one of them empty"
    elif [ ! -f "$secret_file" ] || ! value=$(head -c $((SECRET_MAX_BYTES + 1)) -- "$secret_file" 2>/dev/null); then
        problem "$1_FILE $secret_file can't be read"
    elif [ ${#value} -gt $SECRET_MAX_BYTES ]; then
        problem "$1_FILE $secret_file is larger than $SECRET_MAX_BYTES bytes"
    else
        value=$(printf '%s' "$value" | sed 's/^[[:space:]]*//; s/[[:space:]]*$//')
        case $value in
            '') problem "$1_FILE $secret_file is empty" ;;
            *"$NEWLINE"*) problem "$1_FILE $secret_file must hold one line of text" ;;
        esac
    fi
    eval "$1=\$value"
}

problems=''
problem() { problems="$problems
  $*"; }

# Loads the settings of MinIO, those named after $1, and those of the queue.
# MinIO's must have a value, and those in $1.
load_all() {
    needed="MINIO_ENDPOINT MINIO_ACCESS_KEY MINIO_SECRET_KEY MINIO_BUCKET $1" missing=''
    shift
    for name in MINIO_ENDPOINT MINIO_ACCESS_KEY MINIO_SECRET_KEY MINIO_BUCKET "$@" WEBHOOK_QUEUE_DIR; do
        case $name in
            *_KEY | *_TOKEN | EVENTS_FROM) load_secret "$name" ;;
            *) load "$name" && secret_file='' ;;
        esac
        case " $needed " in
            *" $name "*) [ -n "$value$secret_file" ] || missing="$missing, $name" ;;
        esac
    done
    load WEBHOOK_QUEUE_LIMIT "$QUEUE_LIMIT_EVENTS"
    [ -z "$missing" ] || problem "not set: ${missing#, } (in the environment or in .env)"
    MINIO_ENDPOINT=${MINIO_ENDPOINT%/}
    check_url MINIO_ENDPOINT "$MINIO_ENDPOINT"
}

# Leaves the words of MINIO_BUCKET in $buckets.
check_minio() {
    case ${MINIO_ENDPOINT#*://} in
        */*) problem "MINIO_ENDPOINT must have no path" ;;
    esac
    buckets=$(printf '%s' "$MINIO_BUCKET" | tr ',' ' ')
    # shellcheck disable=SC2086 # one word each
    set -- $buckets
    [ $# -gt 0 ] || [ -z "$MINIO_BUCKET" ] || problem "MINIO_BUCKET names no bucket"
    for bucket in "$@"; do
        case $bucket in
            *[!a-zA-Z0-9._*?-]*) problem "MINIO_BUCKET: '$bucket' is no bucket name" ;;
            *[*?]*) has_globs=yes ;;
        esac
    done
}

check_queue() {
    check_word WEBHOOK_QUEUE_DIR "$WEBHOOK_QUEUE_DIR"
    case ${WEBHOOK_QUEUE_DIR:-/} in
        /*) ;;
        *) problem "WEBHOOK_QUEUE_DIR must begin with /" ;;
    esac
    case $WEBHOOK_QUEUE_LIMIT in
        *[!0-9]*) problem "WEBHOOK_QUEUE_LIMIT must be a number" ;;
    esac
}

check_url() {
    check_word "$1" "$2"
    case $2 in
        *@*) problem "$1 must not contain credentials" ;;
        '' | http://?* | https://?*) ;;
        *) problem "$1 must begin with http:// or https://" ;;
    esac
}

check_word() {
    case $2 in
        *[[:space:]\"\']*) problem "$1 must have no spaces and no quotes" ;;
    esac
}

# --- mc ---------------------------------------------------------------------------------------

# The real client's path, or a reason why there is none.
find_mc() {
    if [ -n "${MC:-}" ]; then
        mc=$(command -v "$MC") || fail "MC=$MC can't be run"
        is_real "$mc" || fail "MC=$MC is $impostor, not MinIO's client"
        return
    fi
    impostors=''
    for name in mc mcli minio-client "$root/.tools/bin/minio-client"; do
        mc=$(command -v "$name") || continue
        if is_real "$mc"; then
            return
        fi
        impostors="$impostors; $mc is $impostor"
    done
    fail "MinIO's client is not on PATH$impostors. Run scripts/get_mc.sh, or set MC to its path$WITHOUT_MC"
}

is_real() {
    version=$("$1" --version 2>/dev/null </dev/null) || version=''
    case $version in
        *"Midnight Commander"*) impostor='Midnight Commander (a file manager)' ;;
        *"version RELEASE."* | *MinIO* | *"go1."*) return 0 ;;
        *) impostor='some other program' ;;
    esac
    return 1
}

clean_up() {
    trap - EXIT INT TERM HUP
    [ -z "$child" ] || kill "$child" 2>/dev/null || :
    [ -z "$work" ] || rm -rf -- "$work"
}

# The keys go into a file that only this user can read and that lives as long as this script:
# MC_HOST_<alias> can't hold every key (newer clients don't decode it, and split it at ':').
open_session() {
    trap clean_up EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    trap 'exit 129' HUP
    work=$(mktemp -d "${TMPDIR:-/tmp}/$SCRIPT.XXXXXX")
    printf '{"version":"10","aliases":{"%s":{"url":"%s","accessKey":"%s","secretKey":"%s","api":"S3v4","path":"auto"}}}\n' \
        "$ALIAS" "$MINIO_ENDPOINT" "$(json_text "$MINIO_ACCESS_KEY")" "$(json_text "$MINIO_SECRET_KEY")" \
        >"$work/config.json"
    unset MC_HOST_replicator
    export MC_CONFIG_DIR="$work"
}

# As mc itself writes it.
json_text() { printf '%s' "$1" | sed 's/\\/\\\\/g; s/"/\\"/g; s/&/\\u0026/g; s/</\\u003c/g; s/>/\\u003e/g'; }

# Runs mc in the background, so that Ctrl-C is heard at once. What it printed is in $out.
run_mc() {
    "$mc" "$@" >"$work/out" 2>&1 &
    child=$!
    status=0
    wait "$child" || status=$?
    child=''
    out=$(cat "$work/out")
    return $status
}

out_has() {
    case $out in
        *"$1"*) return 0 ;;
    esac
    return 1
}

unreachable() {
    out_has 'dial tcp' || out_has 'connection re' || out_has 'EOF' || out_has 'imeout' ||
        out_has 'no such host' || out_has 'ServerNotInitialized' || out_has 'ServiceUnavailable' ||
        out_has 'broken pipe' || out_has 'Server closed'
}

# Says what went wrong while doing $1, and what to do about it.
explain() {
    if out_has '"Code":"NoSuchBucket"'; then
        hint="the bucket doesn't exist; create it, or name others in MINIO_BUCKET"
    elif out_has 'SignatureDoesNotMatch' || out_has 'InvalidAccessKeyId' || out_has 'AccessDenied'; then
        hint="check MINIO_ACCESS_KEY and MINIO_SECRET_KEY; they must be an administrator's"
    elif out_has 'not connected to target' || out_has 'targets are offline'; then
        hint=$TARGET_HINT
    elif out_has 'x509'; then
        hint="MinIO's certificate isn't trusted; set SSL_CERT_FILE to its CA"
    elif out_has 'HTTP response to HTTPS'; then
        hint="MINIO_ENDPOINT must begin with http://, this server has no TLS"
    elif unreachable; then
        hint="MinIO can't be reached at $MINIO_ENDPOINT; check MINIO_ENDPOINT, and that MinIO runs"
    else
        hint="see MinIO's log"
    fi
    fail "$1: $(reason). Hint: $hint"
}

# The innermost message of mc's JSON, without secrets.
reason() {
    text=$(printf '%s\n' "$out" | sed -n -E 's/.*"cause":\{"message":"(([^"\\]|\\.)*)".*/\1/p' | tail -n 1)
    text=${text:-$out}
    for hidden in "$secret" "$MINIO_SECRET_KEY"; do
        text=$(mask "$text" "$hidden")
        text=$(mask "$text" "$(json_text "$hidden")")
    done
    printf '%s\n' "$text" | sed 1q
}

# $1 with every $2 replaced by ***.
mask() {
    rest=$1 done_part=''
    while [ -n "$2" ]; do
        case $rest in
            *"$2"*) ;;
            *) break ;;
        esac
        done_part="$done_part${rest%%"$2"*}***"
        rest=${rest#*"$2"}
    done
    printf '%s\n' "$done_part$rest"
}

# Runs $1 for each bucket and target.
for_each_binding() {
    for bucket in $buckets; do
        "$1" "$bucket" $NOW_ID
        "$1" "$bucket" $QUEUE_ID
    done
}
