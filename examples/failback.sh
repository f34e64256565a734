# examples/failback.sh: a complete round, away with a planned failover and back by differences
export TIDEMARK_VAULT=dir:vault
printf 'day 1' > web.img && truncate -s 4M web.img
tidemark replicate web.img --disk web
tidemark failover planned --disk web --to file:moved.img --source web.img
run=$(tidemark failover list --json | sed -n 's/.*"run":"\([0-9a-f]*\)".*"kind":"planned".*/\1/p')
tidemark failover commit "$run"
tidemark reprotect "$run"

# The way back: the old image gets what was written at the new place, and is protected again.
printf 'day 3' | dd of=moved.img conv=notrunc status=none
tidemark failback "$run" --to web.img
back=$(tidemark failover list --json | sed -n 's/.*"run":"\([0-9a-f]*\)".*"kind":"failback".*/\1/p')
tidemark failover commit "$back"
tidemark reprotect "$back"
tidemark points list --disk web
