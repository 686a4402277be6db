#!/bin/sh
# Makes MinIO publish every change of its buckets to NATS JetStream, using MinIO's own client.
#
# Two notification targets, both bound to every bucket, as config/minio-webhook.sh has them:
#   REPLICATOR_NOW    without a queue: published at once, tried once. The speed.
#   REPLICATOR_QUEUE  with a queue on MinIO's disk: tried until JetStream has it. The guarantee.
# What is published twice costs the service nothing.
set -eu
set -f # words such as bucket names are split, and never mean files
umask 077

ALIAS=replicator
QUEUE_LIMIT_EVENTS=100000
EVENTS=put,delete
WAIT_S=120
POLL_S=1

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
mode=set dry_run=no work=''

usage() {
    cat <<HELP
Usage: config/minio-nats.sh [--remove] [--dry-run] [--help]

Makes MinIO publish the events of its buckets to NATS JetStream, for python -m webhook.ingest. Start that
first: it makes the stream. Safe to repeat. What else the buckets tell of stays as it is.

  --remove    take away our two targets and their events, nothing else
  --dry-run   print what would be run, secrets masked
  --help

Settings, from the environment, else from .env in the current folder or in the repository:
  MINIO_ENDPOINT, MINIO_ACCESS_KEY, MINIO_SECRET_KEY    MinIO, and an administrator of it
  MINIO_BUCKET         one bucket or several: a,b,c; no wildcards
  EVENTS_FROM          the service's own; its first server and its login are MinIO's too
  EVENTS_SUBJECT       the service's own (minio.events)
  NATS_ADDRESS         host:port as MinIO reaches NATS, where that is not the one in EVENTS_FROM
  WEBHOOK_QUEUE_DIR    folder on MinIO's machine that survives a restart, e.g. /data/.replicator-events
  WEBHOOK_QUEUE_LIMIT  events it may hold ($QUEUE_LIMIT_EVENTS); more are dropped by MinIO
  MC                   MinIO's client, if it isn't mc, mcli or minio-client on PATH

mc takes NATS' password only as an argument: while it runs, other users of this machine could see it in the
process list.

Exit status: 0 done, 1 failed, 2 wrong use.
HELP
}

say() { printf '%s\n' "$*"; }
warn() { printf 'minio-nats: %s\n' "$*" >&2; }
fail() {
    warn "$*"
    exit 1
}
misuse() {
    warn "$*"
    exit 2
}

# --- options and settings ---------------------------------------------------------------------

parse_options() {
    for option in "$@"; do
        case $option in
            --remove) mode=remove ;;
            --dry-run) dry_run=yes ;;
            --help | -h)
                usage
                exit 0
                ;;
            *) misuse "unknown option $option; --help lists them" ;;
        esac
    done
}

# What .env says of $1.
from_file() {
    for file in ./.env "$root/.env"; do
        [ -f "$file" ] || continue
        sed -n "s/^[[:space:]]*\(export[[:space:]]\{1,\}\)\{0,1\}$1[[:space:]]*=[[:space:]]*//p" "$file" |
            tail -n 1 | tr -d '\r' | sed "s/^\"\([^\"]*\)\".*/\1/; t
                s/^'\([^']*\)'.*/\1/; t
                s/[[:space:]]#.*//; s/[[:space:]]*\$//"
        return
    done
}

# Sets the shell variable $1 from the environment, the file, or to $2.
load() {
    eval "value=\${$1:-}"
    [ -n "$value" ] || value=$(from_file "$1")
    [ -n "$value" ] || value=${2:-}
    eval "$1=\$value"
}

load_settings() {
    missing=''
    for name in MINIO_ENDPOINT MINIO_ACCESS_KEY MINIO_SECRET_KEY MINIO_BUCKET EVENTS_FROM WEBHOOK_QUEUE_DIR; do
        load $name
        case $mode$name in
            removeEVENTS_FROM | removeWEBHOOK_QUEUE_DIR) ;;
            *) [ -n "$value" ] || missing="$missing, $name" ;;
        esac
    done
    [ -z "$missing" ] || misuse "not set: ${missing#, } (in the environment or in .env)"
    load EVENTS_SUBJECT minio.events
    load NATS_ADDRESS
    load WEBHOOK_QUEUE_LIMIT "$QUEUE_LIMIT_EVENTS"
    buckets=$(printf '%s' "$MINIO_BUCKET" | tr ',' ' ')
    case $buckets in
        *[*?]*) misuse "MINIO_BUCKET: name the buckets one by one, without * and ?" ;;
    esac
    [ $mode = remove ] || read_server
}

# Takes the first server of EVENTS_FROM apart, into $address and the words in $login.
read_server() {
    server=${EVENTS_FROM%%,*} login=''
    case $EVENTS_FROM$EVENTS_SUBJECT$NATS_ADDRESS$WEBHOOK_QUEUE_DIR$WEBHOOK_QUEUE_LIMIT in
        *[[:space:]\"\']*) misuse "the settings must have no spaces and no quotes" ;;
    esac
    case $server in
        tls://*) login=' tls=on' ;;
        nats://*) ;;
        *) misuse "EVENTS_FROM must be like nats://user:password@host:4222" ;;
    esac
    server=${server#*://}
    address=${NATS_ADDRESS:-${server##*@}}
    address=${address%/}
    case $address in
        *:[0-9]*) ;;
        *) address=$address:4222 ;;
    esac
    case $server in
        *%*@*) misuse "a login with % in EVENTS_FROM can't be given to MinIO by this script" ;;
        *:*@*) user=${server%%:*} secret=${server#*:} secret=${secret%@*} && login="$login username=$user password=$secret" ;;
        *@*) secret=${server%@*} && login="$login token=$secret" ;;
        *) secret='' ;;
    esac
}

# --- mc ---------------------------------------------------------------------------------------

find_mc() {
    for name in ${MC:-mc mcli minio-client "$root/.tools/bin/minio-client"}; do
        mc=$(command -v "$name") || continue
        case $("$mc" --version 2>/dev/null </dev/null) in
            *"Midnight Commander"*) ;;
            *"version RELEASE."* | *MinIO* | *"go1."*) return ;;
        esac
    done
    fail "MinIO's client is not on PATH. Run scripts/get_mc.sh, or set MC to its path"
}

# The keys go into a file that only this user can read and that lives as long as this script.
open_session() {
    trap 'rm -rf -- "$work"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    work=$(mktemp -d "${TMPDIR:-/tmp}/minio-nats.XXXXXX")
    printf '{"version":"10","aliases":{"%s":{"url":"%s","accessKey":"%s","secretKey":"%s","api":"S3v4","path":"auto"}}}\n' \
        "$ALIAS" "${MINIO_ENDPOINT%/}" "$(json_text "$MINIO_ACCESS_KEY")" "$(json_text "$MINIO_SECRET_KEY")" \
        >"$work/config.json"
    export MC_CONFIG_DIR="$work"
}

json_text() { printf '%s' "$1" | sed 's/\\/\\\\/g; s/"/\\"/g'; }

# Runs mc, or prints what would be run. What mc printed is in $out.
run_mc() {
    if [ $dry_run = yes ]; then
        say "mc $*" | sed "s/ \$/ ''/" # what is empty shows as that
        return
    fi
    status=0
    out=$("$mc" "$@" 2>&1 </dev/null) || status=$?
    return $status
}

# --- what is done -----------------------------------------------------------------------------

did() { [ $dry_run = yes ] || say "$*"; }

for_each_binding() {
    for bucket in $buckets; do
        "$1" "$bucket" REPLICATOR_NOW
        "$1" "$bucket" REPLICATOR_QUEUE
    done
}

set_target() {
    words="address=$address subject=$EVENTS_SUBJECT jetstream=on$login"
    [ "$1" = REPLICATOR_NOW ] || words="$words queue_dir=$WEBHOOK_QUEUE_DIR queue_limit=$WEBHOOK_QUEUE_LIMIT"
    # shellcheck disable=SC2086 # the words have no spaces
    run_mc admin config set $ALIAS "notify_nats:$1" $words || fail "target $1 can't be set: $(reason)"
    did "target $1: set"
}

# MinIO knows its new targets only a while after it was restarted.
bind() {
    deadline=$(($(date +%s) + WAIT_S))
    until run_mc event add "$ALIAS/$1" "arn:minio:sqs::$2:nats" --event $EVENTS --ignore-existing; do
        case $out in
            *"bucket does not exist"*) deadline=0 ;;
        esac
        [ "$(date +%s)" -lt "$deadline" ] || fail "bucket $1 can't be bound to $2: $(reason)"
        sleep $POLL_S
    done
    did "bucket $1: $2 added"
}

unbind() {
    run_mc event remove "$ALIAS/$1" "arn:minio:sqs::$2:nats" --event '' ||
        warn "bucket $1: $2 was not bound, or can't be unbound: $(reason)"
}

reset_target() {
    run_mc admin config reset $ALIAS "notify_nats:$1" || fail "target $1 can't be removed: $(reason)"
    did "target $1: removed"
}

restart() {
    run_mc --json admin service restart $ALIAS || # without --json it needs a terminal
        warn "MinIO did not restart: $(reason). Restart it now: it reads its targets only when it starts"
}

# What mc gave as the reason, without the password.
reason() {
    rest=$out text=''
    while [ -n "${secret:-}" ]; do
        case $rest in
            *"$secret"*) text="$text${rest%%"$secret"*}***" rest=${rest#*"$secret"} ;;
            *) break ;;
        esac
    done
    printf '%s\n' "$text$rest" | sed 's/.*"cause":{"message":"\([^"]*\)".*/\1/; 1q'
}

parse_options "$@"
load_settings
if [ $dry_run = no ]; then
    find_mc
    open_session
elif [ -n "${secret:-}" ]; then
    login=$(printf '%s' "$login" | sed 's/\(password\|token\)=.*/\1=***/')
fi
if [ $mode = set ]; then
    set_target REPLICATOR_NOW
    set_target REPLICATOR_QUEUE
    restart
    for_each_binding bind
else
    for_each_binding unbind
    reset_target REPLICATOR_NOW
    reset_target REPLICATOR_QUEUE
    restart
fi
[ $dry_run = no ] || say "Nothing was changed."
