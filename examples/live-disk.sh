# examples/live-disk.sh: protect a disk, read it as an NBD client, and restore its newest point
set -eu
export TIDEMARK_VAULT=dir:vault TIDEMARK_STATE=state
truncate -s 64M web.img
printf 'content of the disk' | dd of=web.img conv=notrunc status=none

tidemark protect web.img --disk web --listen unix:web.sock --cycle 1s &
protecting=$!
until [ -S web.sock ]; do sleep 0.1; done # the disk is served from now on

# Any NBD client may read and write now. Here Tidemark itself reads the export, as a second disk.
tidemark replicate 'nbd+unix:///web?socket=web.sock' --disk copy

kill -TERM "$protecting" # as ^C does: a last point, then the exact marks are saved
wait "$protecting"
tidemark points list --disk web
tidemark materialize --disk web --point latest --to back.img
cmp web.img back.img
