#!/bin/sh
# Puts a document through all of Weir on this machine, and searches it.
# Usage: demo.sh WEIR DOCUMENT      (`make demo` builds WEIR and calls this)
set -eu

weir=$1
document=$2
[ -f "$document" ] || { echo "demo: there is no file $document" >&2; exit 2; }

# A free port, the user's own data: what the demo embeds is there afterwards.
out=$(mktemp)
"$weir" up --runtime-dir "${WEIR_RUNTIME_DIR:-$PWD/.runtime}" --listen 127.0.0.1:0 >"$out" &
up=$!
stop() {
    status=$?
    trap - EXIT INT TERM
    kill -TERM "$up" 2>/dev/null || true
    wait "$up" || true
    rm -f "$out"
    exit "$status"
}
trap stop EXIT
trap 'exit 130' INT TERM

echo "Starting Postgres, the coordinator and a worker with a local model ..."
until url=$(sed -n 's/^Weir is ready at \(http:[^,]*\),.*/\1/p' "$out") && [ -n "$url" ]; do
    kill -0 "$up" 2>/dev/null || { echo 'demo: weir up ended early' >&2; exit 1; }
    sleep 0.1
done
export WEIR_COORDINATOR="$url"

show() {
    printf '\n$ weir'
    for word; do
        case $word in *' '*) printf " '%s'" "$word" ;; *) printf ' %s' "$word" ;; esac
    done
    printf '\n'
    "$weir" "$@"
}

show put "$document" --name demo --watch
show ls
case $document in
*logistics*)
    show search --source demo --limit 3 'my box arrived smashed'
    show search --source demo --limit 3 'someone left the company, lock them out'
    ;;
*)
    show search --source demo --limit 3 'get rid of something I made earlier'
    show search --source demo --limit 3 'who am I allowed to be'
    ;;
esac

cat <<END

That was Weir, all of it, with real vectors in a real Postgres. To go on:
  $weir up                              run it, with what the demo embedded
  $weir put FILE --watch                in another terminal: embed your own document
  $weir search 'what you look for'      and search it
  make demo SPEC=your.openapi.yaml      or see this with another document
END
