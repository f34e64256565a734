# examples/retention.sh: three points, a pin, a prune, a garbage collection, and a proof of what is left
set -eu
export TIDEMARK_VAULT=dir:vault TIDEMARK_STATE=state
truncate -s 16M web.img
for day in 1 2 3; do
  printf 'day %s' "$day" | dd of=web.img bs=1M seek="$day" conv=notrunc status=none
  tidemark replicate web.img --disk web
done

tidemark points pin --disk web --point 1 --name audit    # point 1 is kept, whatever a policy says
tidemark prune --policy keep:last=1 --dry-run            # which points a prune would drop, and why
tidemark prune --policy keep:last=1                      # points 1 (pinned) and 3 are left
tidemark collect                                         # frees what no point needs any more
tidemark points list --disk web
tidemark verify --disk web --source web.img              # proves the newest point and compares it with the image
tidemark materialize --disk web --point 1 --to back.img
