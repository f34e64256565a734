# examples/instant.sh: a disk that runs at once from a point, is committed meanwhile, and protected there
set -eu
export TIDEMARK_VAULT=dir:vault TIDEMARK_STATE=state
printf 'day 1' > web.img && truncate -s 64M web.img
tidemark replicate web.img --disk web

# The disk is served until ^C, and copied into run.img meanwhile. The summary comes first.
tidemark failover unplanned --disk web --to instant:unix:web.sock,image=run.img --json > run.log &
serving=$!
until grep -q '"type":"ready"' run.log; do sleep 0.1; done
run=$(sed -n 's/.*"type":"summary".*"run":"\([0-9a-f]*\)".*/\1/p' run.log)

# Any NBD client may read and write now. Here Tidemark itself reads the export, as a second disk.
tidemark replicate 'nbd+unix:///web?socket=web.sock' --disk copy
tidemark failover commit "$run" # from another terminal, while the disk is served
kill -TERM "$serving"           # as ^C does
wait "$serving"

# Protected at its new place, with nothing to scan. After a crash: `tidemark jobs resume "$run"`.
tidemark reprotect "$run" --listen unix:web.sock --json > protect.log &
protecting=$!
until grep -q '"type":"ready"' protect.log; do sleep 0.1; done
kill -TERM "$protecting"
wait "$protecting"
tidemark failover show "$run"
tidemark points list --disk web
