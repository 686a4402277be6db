#!/bin/sh
# Makes MinIO publish every change of its buckets to NATS JetStream, using MinIO's own client.
#
# Two notification targets, both bound to every bucket, as config/minio-webhook.sh has them:
#   REPLICATOR_NOW    without a queue: published at once, tried once. The speed.
#   REPLICATOR_QUEUE  with a queue on MinIO's disk: tried until JetStream has it. The guarantee.
# What is published twice costs the service nothing.
set -eu

WAIT_S=120

SCRIPT=minio-nats
TARGET_HINT="MinIO can't reach NATS; start it first, or correct NATS_ADDRESS as seen from MinIO"
WITHOUT_MC=''
self=$0
[ ! -h "$self" ] || self=$(readlink -f -- "$self")
root=$(CDPATH='' cd -- "$(dirname -- "$self")/.." && pwd)
# shellcheck source=config/mc.sh
. "$root/config/mc.sh"

mode=set dry_run=no

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
  NAME_FILE            a file with the value of a key, token or EVENTS_FROM, in place of NAME
  MC                   MinIO's client, if it isn't mc, mcli or minio-client on PATH

mc takes NATS' password only as an argument: while it runs, other users of this machine could see it in the
process list.

Exit status: 0 done, 1 failed, 2 wrong use.
HELP
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

load_settings() {
    needed=''
    [ $mode = remove ] || needed='EVENTS_FROM WEBHOOK_QUEUE_DIR'
    load_all "$needed" EVENTS_FROM
    load EVENTS_SUBJECT minio.events
    load NATS_ADDRESS
    check_minio
    [ $has_globs = no ] || problem "MINIO_BUCKET: name the buckets one by one, without * and ?"
    check_queue
    [ $mode = remove ] || [ -z "$EVENTS_FROM" ] || read_server
    [ -z "$problems" ] || misuse "the settings can't be used:$problems"
}

# Takes the first server of EVENTS_FROM apart, into $address and the words in $login.
read_server() {
    server=${EVENTS_FROM%%,*} login=''
    check_word EVENTS_FROM "$EVENTS_FROM"
    check_word EVENTS_SUBJECT "$EVENTS_SUBJECT"
    check_word NATS_ADDRESS "$NATS_ADDRESS"
    case $server in
        tls://*) login=' tls=on' ;;
        nats://*) ;;
        *) problem "EVENTS_FROM must be like nats://user:password@host:4222" ;;
    esac
    server=${server#*://}
    address=${NATS_ADDRESS:-${server##*@}}
    address=${address%/}
    case $address in
        *:[0-9]*) ;;
        *) address=$address:4222 ;;
    esac
    case $server in
        *%*@*) problem "a login with % in EVENTS_FROM can't be given to MinIO by this script" ;;
        *:*@*) user=${server%%:*} secret=${server#*:} secret=${secret%@*} && login="$login username=$user password=$secret" ;;
        *@*) secret=${server%@*} && login="$login token=$secret" ;;
    esac
}

# --- what is done -----------------------------------------------------------------------------

# Runs mc, or prints what would be run. Errors are read from its JSON; a restart without it needs a terminal.
request() {
    if [ $dry_run = no ]; then
        run_mc --json "$@"
    else
        say "mc $*" | sed "s/ \$/ ''/" # what is empty shows as that
    fi
}

did() { [ $dry_run = yes ] || say "$*"; }

set_target() {
    words="address=$address subject=$EVENTS_SUBJECT jetstream=on$login"
    [ "$1" = $NOW_ID ] || words="$words queue_dir=$WEBHOOK_QUEUE_DIR queue_limit=$WEBHOOK_QUEUE_LIMIT"
    # shellcheck disable=SC2086 # the words have no spaces
    request admin config set $ALIAS "notify_nats:$1" $words || explain "target $1 can't be set"
    did "target $1: set"
}

# MinIO knows its new targets only a while after it was restarted.
bind() {
    deadline=$(($(date +%s) + WAIT_S))
    until request event add "$ALIAS/$1" "arn:minio:sqs::$2:nats" --event $EVENTS --ignore-existing; do
        if out_has '"Code":"NoSuchBucket"' || [ "$(date +%s)" -ge "$deadline" ]; then
            explain "bucket $1 can't be bound to $2"
        fi
        sleep $POLL_S
    done
    did "bucket $1: $2 added"
}

unbind() {
    request event remove "$ALIAS/$1" "arn:minio:sqs::$2:nats" --event '' ||
        warn "bucket $1: $2 was not bound, or can't be unbound: $(reason)"
}

reset_target() {
    request admin config reset $ALIAS "notify_nats:$1" || explain "target $1 can't be removed"
    did "target $1: removed"
}

restart() {
    request admin service restart $ALIAS ||
        warn "MinIO did not restart: $(reason). Restart it now: it reads its targets only when it starts"
}

parse_options "$@"
load_settings
if [ $dry_run = no ]; then
    find_mc
    open_session
elif [ -n "$secret" ]; then
    login=$(printf '%s' "$login" | sed 's/\(password\|token\)=.*/\1=***/')
fi
if [ $mode = set ]; then
    set_target $NOW_ID
    set_target $QUEUE_ID
    restart
    for_each_binding bind
else
    for_each_binding unbind
    reset_target $NOW_ID
    reset_target $QUEUE_ID
    restart
fi
[ $dry_run = no ] || say "Nothing was changed."
