#!/bin/sh
# Locks a SQLite database for the instant of a recovery point: no transaction is open, and every committed one is on the disk.
# Readers go on; writers wait (give them a busy timeout).
#
#   tidemark protect disk.img --disk data --vault ... --listen unix:/run/data.sock \
#     --pre "$PWD/examples/hooks/sqlite.sh pre /srv/data/app.db" --post "$PWD/examples/hooks/sqlite.sh post /srv/data/app.db"
#
# Needs sqlite3 and the right to write the database. Between pre and post a sqlite3 in the background holds the write lock (BEGIN IMMEDIATE);
# it ends, with its lock, when post asks it to.
set -u
phase=${1:?usage: sqlite.sh pre|post DATABASE}
database=${2:?usage: sqlite.sh pre|post DATABASE}
state=${TIDEMARK_HOOK_STATE:-/tmp/tidemark-hooks-$(id -u)}
hold=$state/sqlite-$(printf %s "$database" | cksum | tr ' ' -)

# Whether the background process that has the lock, or waits for it, still lives. It takes `held` away when it ends; killed, it cannot.
held() {
  [ -e "$hold/held" ] && [ -s "$hold/holder" ] && kill -s 0 "$(cat "$hold/holder")" 2>/dev/null
}

# Asks the holder to end until it is gone.
release() {
  tenths=0
  while held; do
    echo end 1<>"$hold/release"
    tenths=$((tenths + 1))
    [ "$tenths" -lt 100 ] || return 1
    sleep 0.1
  done
}

case $phase in
  pre)
    [ -e "$database" ] || { echo "sqlite.sh: there is no database $database" >&2; exit 1; }
    umask 077
    mkdir -p "$state" && [ -O "$state" ] || { echo "sqlite.sh: $state is not ours" >&2; exit 1; }
    held || rm -rf "$hold"
    mkdir "$hold" || { echo "sqlite.sh: $database is being held already; \`sqlite.sh post\` releases it" >&2; exit 1; }
    mkfifo "$hold/release" || exit 1
    : >"$hold/held"
    # The log is emptied into the database first, because that cannot be done under the lock. When the database has none, this does nothing.
    # The pipe is kept open for both directions, so that the word to end is not lost, whenever it is said.
    (
      exec 9<>"$hold/release"
      {
        printf '%s\n' '.bail on' '.timeout 30000' 'PRAGMA wal_checkpoint(TRUNCATE);' 'BEGIN IMMEDIATE;' ".output $hold/locked" 'SELECT 1;' '.output'
        read -r _ <&9
      } | {
        sqlite3 -batch "$database" >"$hold/log" 2>&1 9<&-
        rm -f "$hold/held"
        echo end >&9
      }
    ) </dev/null >/dev/null 2>&1 &
    echo $! >"$hold/holder"
    # The answer is written once the lock is held. When the holder has gone, there was an error.
    while held; do
      if [ -s "$hold/locked" ]; then
        # Committed transactions may still lie in the page cache (synchronous = NORMAL or OFF): to the disk with them.
        sync
        exit 0
      fi
      sleep 0.05
    done
    cat "$hold/log" >&2
    rm -rf "$hold"
    exit 1
    ;;
  post)
    # Post also runs when pre failed, and may run twice.
    [ -d "$hold" ] || exit 0
    # If the lock was lost before post, the database was not locked at the cut: this fails, and the point is not labelled application-consistent.
    status=0
    if held; then
      release || { echo "sqlite.sh: the lock on $database cannot be released" >&2; exit 1; }
    else
      status=1
      [ -p "$hold/release" ] && echo end 1<>"$hold/release"
      echo "sqlite.sh: the lock on $database was lost" >&2
    fi
    rm -rf "$hold"
    exit "$status"
    ;;
  *)
    echo "sqlite.sh: unknown phase $phase" >&2
    exit 2
    ;;
esac
