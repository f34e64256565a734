# examples/replica.sh: an image that follows its disk, is compared with its point, and is used at last
export TIDEMARK_VAULT=dir:vault
printf 'day 1' > web.img && truncate -s 4M web.img
tidemark replicate web.img --disk web
tidemark replica run --disk web --to file:copy.img --once

# The next point: only what differs is written.
printf 'day 2' | dd of=web.img conv=notrunc status=none
tidemark replicate web.img --disk web
tidemark replica run --disk web --to file:copy.img --once
replica=$(tidemark replica show --json | sed -n 's/.*"replica":"\([0-9a-f]*\)".*/\1/p')
tidemark replica show "$replica"
tidemark replica verify "$replica"

# Its use: from now on the image is an ordinary file.
tidemark replica remove "$replica" --keep-target
