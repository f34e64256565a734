#!/bin/sh
# Checkpoints a PostgreSQL cluster for the instant of a recovery point: every transaction that was committed before pre, also one with
# synchronous_commit = off, is on the disk, and a restored cluster has next to nothing to replay.
#
#   tidemark protect disk.img --disk pg --vault ... --listen unix:/run/pg.sock \
#     --pre "$PWD/examples/hooks/postgresql.sh pre /srv/pg" --post "$PWD/examples/hooks/postgresql.sh post /srv/pg"
#
# Needs psql and a superuser (or a member of pg_checkpoint); PGHOST, PGPORT and PGUSER select the server, and ~/.pgpass holds the password. Put the
# variables into the command: --pre "PGHOST=/run/postgresql PGUSER=postgres $PWD/examples/hooks/postgresql.sh pre".
#
# PostgreSQL needs no more than that: a point is one instant of the disk, and from one instant its log recovers. Without MOUNTPOINT,
# transactions go on between the checkpoint and the point, and those committed by then are in it. With MOUNTPOINT (root, fsfreeze) the file
# system is frozen as well, so that the point holds no half-written page at all. Data and log on several disks: protect them as one group.
set -u
phase=${1:?usage: postgresql.sh pre|post [MOUNTPOINT]}
mount=${2:-}
here=$(dirname "$0")

case $phase in
  pre)
    psql --no-psqlrc --no-password --quiet --set ON_ERROR_STOP=1 --dbname "${PGDATABASE:-postgres}" --command CHECKPOINT || exit 1
    ;;
  post) ;;
  *)
    echo "postgresql.sh: unknown phase $phase" >&2
    exit 2
    ;;
esac
[ -z "$mount" ] || exec "$here/fsfreeze.sh" "$phase" "$mount"
