# examples/failover.sh: a drill, then a planned failover that is committed
export TIDEMARK_VAULT=dir:vault
printf 'day 1' > web.img && truncate -s 4M web.img
tidemark replicate web.img --disk web

# A drill: replication goes on meanwhile, and nothing of the drill is left.
tidemark failover test --disk web --to file:drill.img --check 'head -c 5 "$TIDEMARK_IMAGE"' --ttl 14d
run=$(tidemark failover list --json | sed -n 's/.*"run":"\([0-9a-f]*\)".*/\1/p')
tidemark failover cleanup "$run" --note "passed"

# The move: what was written last goes along, and the old image makes no more points.
printf 'day 2' | dd of=web.img conv=notrunc status=none
tidemark failover planned --disk web --to file:moved.img --source web.img
run=$(tidemark failover list --json | sed -n 's/.*"run":"\([0-9a-f]*\)".*"kind":"planned".*/\1/p')
tidemark failover commit "$run"
tidemark reprotect "$run"
tidemark points list --disk web
