#!/bin/sh
# Freezes a mounted file system for the instant of a recovery point: every earlier write is on the disk, and no operation is half done.
#
#   tidemark protect disk.img --disk data --vault ... --listen unix:/run/data.sock \
#     --pre "$PWD/examples/hooks/fsfreeze.sh pre /srv/data" --post "$PWD/examples/hooks/fsfreeze.sh post /srv/data"
#
# Needs root and fsfreeze (util-linux). The file system of the protected disk is mounted at /srv/data. Never freeze the file system that holds
# the image, Tidemark's state folder or the root: the process that has to thaw it would block on it.
set -u
export LC_ALL=C
phase=${1:?usage: fsfreeze.sh pre|post MOUNTPOINT}
mount=${2:?usage: fsfreeze.sh pre|post MOUNTPOINT}
state=${TIDEMARK_HOOK_STATE:-/run/tidemark-hooks}
marker=$state/fsfreeze-$(printf %s "$mount" | cksum | tr ' ' -)

case $phase in
  pre)
    mkdir -p -m 0700 "$state" || exit 1
    # The marker says that this hook may have frozen the file system. It comes first, so there is no freeze without it.
    : >"$marker" || exit 1
    fsfreeze --freeze "$mount" && exit 0
    # Not frozen, or frozen by another program, which thaws it.
    rm -f "$marker"
    exit 1
    ;;
  post)
    # Post also runs when pre failed, and may run twice: without a marker there is nothing to thaw.
    [ -e "$marker" ] || exit 0
    # If another program has thawed the file system, this fails, and the point is not labelled application-consistent.
    fsfreeze --unfreeze "$mount"
    status=$?
    rm -f "$marker"
    exit "$status"
    ;;
  *)
    echo "fsfreeze.sh: unknown phase $phase" >&2
    exit 2
    ;;
esac
