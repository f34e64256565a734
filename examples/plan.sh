# examples/plan.sh: a drill of the plan of shop.yaml, with its report
export TIDEMARK_VAULT=dir:vault
mkdir dr drill
for disk in pg-data pg-log web; do
  printf '%s' "$disk" > "$disk.img" && truncate -s 4M "$disk.img"
  tidemark replicate "$disk.img" --disk "$disk"
done
tidemark plan check --plan shop.yaml
tidemark failover test --plan shop.yaml --dry-run

# The run waits at step 5 until a person has looked.
tidemark failover test --plan shop.yaml --note "quarterly drill"
run=$(tidemark plan list --json | sed -n 's/.*"run":"\([0-9a-f]*\)","plan":"shop".*/\1/p')
tidemark jobs resume "$run" --step 5
tidemark failover cleanup "$run" --note "passed"
tidemark plan report "$run" --out drill.html
tidemark plan list --plan shop.yaml
