#!/bin/sh
# Freezes a mounted file system for the instant of a recovery point: everything written before is on the disk, nothing is half done.
#
#   tidemark protect disk.img --disk data --vault ... --listen unix:/run/data.sock \
#     --pre "$PWD/examples/hooks/fsfreeze.sh pre /srv/data" --post "$PWD/examples/hooks/fsfreeze.sh post /srv/data"
#
# Needs root and fsfreeze (util-linux). /srv/data is where the file system of the protected disk is mounted. Never freeze the file system that
# holds the image, Tidemark's state folder or the root: what has to thaw it could not go on.
set -u
export LC_ALL=C
phase=${1:?usage: fsfreeze.sh pre|post MOUNTPOINT}
mount=${2:?usage: fsfreeze.sh pre|post MOUNTPOINT}
state=${TIDEMARK_HOOK_STATE:-/run/tidemark-hooks}
marker=$state/fsfreeze-$(printf %s "$mount" | cksum | tr ' ' -)

case $phase in
  pre)
    mkdir -p -m 0700 "$state" || exit 1
    # The marker says that a freeze may be ours. It comes first, so that nothing is ever frozen without it.
    : >"$marker" || exit 1
    fsfreeze --freeze "$mount" && exit 0
    # Not frozen, or frozen by somebody else, who will thaw it.
    rm -f "$marker"
    exit 1
    ;;
  post)
    # Post also runs when pre failed, and may run twice: without a marker there is nothing of ours to thaw.
    [ -e "$marker" ] || exit 0
    # A file system that is not frozen any more was thawed behind our back: this fails, and the point is not called application-consistent.
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
