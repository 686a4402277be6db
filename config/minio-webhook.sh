#!/bin/sh
# Makes MinIO report every change of its buckets to this service, using MinIO's own client.
#
# Two notification targets, both bound to every bucket:
#   REPLICATOR_NOW    without a queue: sent at once, tried once. The speed.
#   REPLICATOR_QUEUE  with a queue on MinIO's disk: sent until accepted. The guarantee.
# What a target delivers twice costs the service nothing. config/configure_minio.py does the same
# without mc.
set -eu

WAIT_DEFAULT_S=120
PROBE_BOUND_S=5

SCRIPT=minio-webhook
TARGET_HINT="MinIO can't reach WEBHOOK_URL; start the service first, or correct the address as seen from MinIO"
WITHOUT_MC=", or use config/configure_minio.py, which needs no mc"
self=$0
[ ! -h "$self" ] || self=$(readlink -f -- "$self")
root=$(CDPATH='' cd -- "$(dirname -- "$self")/.." && pwd)
# shellcheck source=config/mc.sh
. "$root/config/mc.sh"

mode=set events_only=no dry_run=no may_restart=yes wait_s=$WAIT_DEFAULT_S
changed=no restart_asked=no was_down=no deadline=0

usage() {
    cat <<HELP
Usage: config/minio-webhook.sh [options]

Makes MinIO send the events of its buckets to this service. Safe to repeat. Notification
configurations of other targets stay as they are.

  --events-only    only bind the buckets: the targets are set by MINIO_NOTIFY_WEBHOOK_* in MinIO's
                   own environment (config/minio/Dockerfile). With --remove: only unbind them.
  --remove         take away our two targets and their events, nothing else
  --no-restart     don't restart MinIO; wait until somebody else did
  --wait SECONDS   how long to wait for the restarted MinIO ($WAIT_DEFAULT_S)
  --dry-run        print what would be run, secrets masked; MinIO is only asked what a glob stands for
  --help

Settings, from the environment, else from .env in the current folder or in the repository:
  MINIO_ENDPOINT       http://host:9000 or https://host
  MINIO_ACCESS_KEY, MINIO_SECRET_KEY    a MinIO administrator
  MINIO_BUCKET         one bucket or several: a,b,c; globs too: * or photos-*, the buckets that match
                       when this runs. (config/configure_minio.py can take them from RULES_FILE)
  WEBHOOK_URL          where MinIO reaches the service, e.g. http://replicator:8000/minio/events
  WEBHOOK_AUTH_TOKEN   the token the service expects: one word
  WEBHOOK_QUEUE_DIR    folder on MinIO's machine that survives a restart, e.g. /data/.replicator-events
  WEBHOOK_QUEUE_LIMIT  events it may hold ($QUEUE_LIMIT_EVENTS); more are dropped by MinIO
  NAME_FILE            a file with the value of a key, token or EVENTS_FROM, in place of NAME
  MC                   MinIO's client, if it isn't mc, mcli or minio-client on PATH
  SSL_CERT_FILE        the CA of a MinIO with a certificate of its own

mc takes the webhook's token only as an argument: while it runs, other users of this machine could
see it in the process list. config/configure_minio.py has no such moment.

Exit status: 0 done, 1 failed, 2 wrong use.
HELP
}

# --- options and settings ---------------------------------------------------------------------

parse_options() {
    while [ $# -gt 0 ]; do
        case $1 in
            --events-only) events_only=yes ;;
            --remove) mode=remove ;;
            --no-restart) may_restart=no ;;
            --dry-run) dry_run=yes ;;
            --wait)
                [ $# -gt 1 ] || misuse "--wait needs a number of seconds"
                shift
                wait_s=$1
                ;;
            --wait=*) wait_s=${1#--wait=} ;;
            --help | -h)
                usage
                exit 0
                ;;
            *) misuse "unknown option $1; --help lists them" ;;
        esac
        shift
    done
    case $wait_s in
        '' | *[!0-9]* | ???????*) misuse "--wait needs a number of seconds, not '$wait_s'" ;;
    esac
}

load_settings() {
    load RULES_FILE
    load MINIO_BUCKET
    [ -n "$MINIO_BUCKET" ] || [ -z "$RULES_FILE" ] ||
        misuse "this script can't read RULES_FILE: use config/configure_minio.py," \
            "or name the buckets in MINIO_BUCKET"
    needed=''
    [ $mode$events_only != setno ] || needed='WEBHOOK_URL WEBHOOK_AUTH_TOKEN WEBHOOK_QUEUE_DIR'
    load_all "$needed" WEBHOOK_URL WEBHOOK_AUTH_TOKEN
    secret=$WEBHOOK_AUTH_TOKEN
    check_url WEBHOOK_URL "$WEBHOOK_URL"
    check_minio
    check_word WEBHOOK_AUTH_TOKEN "$WEBHOOK_AUTH_TOKEN"
    check_queue
    [ -z "$problems" ] || misuse "the settings can't be used:$problems"
}

# --- the service's end ------------------------------------------------------------------------

check_webhook() {
    command -v curl >/dev/null || return 0
    code=$(curl -s -o "$work/probe" -m $PROBE_BOUND_S -w '%{http_code}' -- "$WEBHOOK_URL") || code='no answer'
    [ "$code" = 200 ] ||
        warn "warning: WEBHOOK_URL $WEBHOOK_URL does not answer 200 from here ($code)." \
            "That is fine if only MinIO can reach it; otherwise start the service first"
}

# --- targets ----------------------------------------------------------------------------------

# The settings of target $1, one word each.
target_words() {
    printf 'endpoint=%s auth_token=%s' "$WEBHOOK_URL" "$WEBHOOK_AUTH_TOKEN"
    [ "$1" = $NOW_ID ] ||
        printf ' queue_dir=%s queue_limit=%s' "$WEBHOOK_QUEUE_DIR" "$WEBHOOK_QUEUE_LIMIT"
}

target_is_set() {
    run_mc admin config get $ALIAS "notify_webhook:$1" || return 1
    have=" $(printf '%s' "$out" | tr '\n' ' ') "
    for word in $(target_words "$1"); do
        case $have in
            *" $word "*) ;;
            *) return 1 ;;
        esac
    done
    case $1$have in
        "$NOW_ID"*" queue_dir=/"*) return 1 ;;
    esac
}

# Sets it even when it looks right: some servers show what they started with, not what is stored.
set_target() {
    did=unchanged
    target_is_set "$1" || did='set'
    # shellcheck disable=SC2046 # the words were checked to have no spaces
    run_mc --json admin config set $ALIAS "notify_webhook:$1" $(target_words "$1") ||
        explain "target $1 can't be set"
    [ $did = unchanged ] || changed=yes
    say "target $1: $did"
}

reset_target() {
    if run_mc --json admin config reset $ALIAS "notify_webhook:$1"; then
        changed=yes
        say "target $1: removed"
    elif out_has 'already deleted' || out_has "doesn't exist"; then
        say "target $1: was not set"
    else
        explain "target $1 can't be removed"
    fi
}

# --- restart ----------------------------------------------------------------------------------

# Asks MinIO to restart. False when somebody else must do it.
restart_server() {
    [ $may_restart = yes ] || return 1
    if run_mc --json admin service restart $ALIAS; then
        say "MinIO is restarting"
        return 0
    fi
    case $out in
        *NotImplemented*) warn "this server can't restart itself" ;;
        *) warn "MinIO did not restart: $(reason)" ;;
    esac
    return 1
}

restart_and_wait() {
    [ $restart_asked = no ] || return 0
    restart_asked=yes
    deadline=$(($(date +%s) + wait_s))
    restart_server && return 0
    restart_asked=by_hand
    say "Restart your MinIO process now: it reads its targets only when it starts. Waiting up to $wait_s s ..."
}

# After a failed request: true when it is worth another try, within the time allowed.
may_come_up() {
    if out_has 'destination ARN'; then
        was_down=yes
        [ $events_only = no ] || fail "MinIO has no target $1. Set MINIO_NOTIFY_WEBHOOK_*_$1 in its environment" \
            "(config/minio/Dockerfile) and restart it, or run this without --events-only"
        restart_and_wait
    elif ! unreachable || [ $restart_asked = no ]; then
        return 1
    else
        was_down=yes
    fi
    [ "$(date +%s)" -lt "$deadline" ] || fail "target $1 is not live after $wait_s s. Restart MinIO while the" \
        "service answers at WEBHOOK_URL, then run this again: it goes on where it stopped"
    sleep $POLL_S
}

# --- buckets ----------------------------------------------------------------------------------

# Puts the buckets there are in place of the globs among $buckets; none comes twice.
# MinIO's own, such as .minio.sys, match nothing.
expand_buckets() {
    if [ $has_globs = yes ]; then
        run_mc --json ls "$ALIAS/" || explain "the buckets can't be listed"
        # shellcheck disable=SC2046 # one word each
        set -- $(out_lines | sed -n 's/.*"key":"\([^"./][^"/]*\)\/".*/\1/p')
    fi
    found=''
    for glob in $buckets; do
        matches=$(matching "$glob" "$@")
        [ -n "$matches" ] || fail "no bucket matches '$glob' (MinIO lists $# to these keys)." \
            "Hint: create one, or name others in MINIO_BUCKET"
        found="$found $matches"
    done
    buckets=$(printf '%s' "$found" | tr ' ' '\n' | awk 'NF && !seen[$0]++')
}

# What $1 stands for, one a line: itself, or those of the others that match it.
matching() {
    case $1 in
        *[*?]*) ;;
        *) set -- "$1" "$1" ;;
    esac
    glob=$1
    shift
    for bucket in "$@"; do
        # shellcheck disable=SC2254 # it is a pattern
        case $bucket in
            $glob) say "$bucket" ;;
        esac
    done
}

# What mc printed, one JSON object a line.
out_lines() {
    printf '%s' "$out" | tr -d ' \t\r\n' | sed 's/}{/}\
{/g'
}

# The configurations of bucket $1 for target $2, one JSON object a line, in $bindings.
# An ARN's region is MinIO's own or empty.
read_bindings() {
    bindings=''
    run_mc --json event list "$ALIAS/$1" || return 1
    bindings=$(out_lines | grep "\"arn\":\"arn:minio:sqs:[^:\"]*:$2:webhook\"") || :
}

is_wanted() {
    case $1 in
        *"}"*"}"* | *'"prefix":"'[!\"]* | *'"suffix":"'[!\"]*) return 1 ;;
        *'"event":["s3:ObjectCreated:*","s3:ObjectRemoved:*"]'*) ;;
        *'"event":["s3:ObjectRemoved:*","s3:ObjectCreated:*"]'*) ;;
        *) return 1 ;;
    esac
}

unbind_found() {
    for arn in $(printf '%s\n' "$bindings" | sed 's/.*"arn":"\([^"]*\)".*/\1/' | sort -u); do
        run_mc --json event remove "$ALIAS/$1" "$arn" --event '' || return 1
    done
}

# One try to bind target $2 to bucket $1: the whole bucket, what is written and what is deleted.
try_to_bind() {
    read_bindings "$1" "$2" || return 1
    if is_wanted "$bindings"; then
        say "bucket $1: $2 unchanged"
        return 0
    fi
    unbind_found "$1" || return 1
    run_mc --json event add "$ALIAS/$1" "arn:minio:sqs::$2:webhook" --event $EVENTS --ignore-existing || return 1
    say "bucket $1: $2 added"
}

bind_bucket() {
    until try_to_bind "$1" "$2"; do
        may_come_up "$2" || explain "bucket $1 can't be bound to $2"
    done
}

unbind_bucket() {
    if ! read_bindings "$1" "$2"; then
        out_has '"Code":"NoSuchBucket"' || explain "bucket $1 can't be read"
        say "bucket $1: does not exist"
    elif [ -z "$bindings" ]; then
        say "bucket $1: $2 was not bound"
    else
        unbind_found "$1" || explain "bucket $1 can't be unbound from $2"
        say "bucket $1: $2 removed"
    fi
}

# --- the three ways to run --------------------------------------------------------------------

print_commands() {
    say "Would run, with the keys for $MINIO_ENDPOINT in a private configuration folder:"
    [ $mode = set ] || for_each_binding print_binding
    if [ $events_only = no ]; then
        print_target $NOW_ID
        print_target $QUEUE_ID
        [ $may_restart = no ] || say "mc admin service restart $ALIAS"
    fi
    [ $mode = remove ] || for_each_binding print_binding
    say "Nothing was changed."
}

print_target() {
    if [ $mode = set ]; then
        say "mc admin config set $ALIAS notify_webhook:$1 $(WEBHOOK_AUTH_TOKEN='***' && target_words "$1")"
    else
        say "mc admin config reset $ALIAS notify_webhook:$1"
    fi
}

print_binding() {
    if [ $mode = set ]; then
        say "mc event add $ALIAS/$1 arn:minio:sqs::$2:webhook --event $EVENTS --ignore-existing"
    else
        say "mc event remove $ALIAS/$1 arn:minio:sqs::$2:webhook --event ''"
    fi
}

set_up() {
    for bucket in $buckets; do
        read_bindings "$bucket" $NOW_ID || explain "bucket $bucket can't be read"
    done
    if [ $events_only = no ]; then
        check_webhook
        set_target $NOW_ID
        set_target $QUEUE_ID
        [ $changed = no ] || restart_and_wait
    fi
    for_each_binding bind_bucket
    if [ $changed$restart_asked$was_down = yesby_handno ]; then
        warn "warning: MinIO had targets of this name before; the new settings count once it was restarted"
    fi
    # shellcheck disable=SC2086 # one word each
    set -- $buckets
    case $# in
        1) say "Done: MinIO reports every change of 1 bucket to the service." ;;
        *) say "Done: MinIO reports every change of $# buckets to the service." ;;
    esac
    [ $has_globs = no ] || say "Buckets made later need this to be run again; it is safe to repeat."
}

remove() {
    for_each_binding unbind_bucket
    if [ $events_only = no ]; then
        reset_target $NOW_ID
        reset_target $QUEUE_ID
        if [ $changed = yes ] && ! restart_server; then
            say "Restart your MinIO process when it suits you; until then the idle targets stay in its memory."
        fi
    fi
    say "Done: MinIO no longer reports to the service."
}

parse_options "$@"
load_settings
if [ $dry_run$has_globs != yesno ]; then
    find_mc
    open_session
fi
expand_buckets
if [ $dry_run = yes ]; then
    print_commands
elif [ $mode = set ]; then
    set_up
else
    remove
fi
