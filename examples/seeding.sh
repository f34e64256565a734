# examples/seeding.sh: the first points travel on a disk, everything later over the network
printf 'day 1' > web.img && truncate -s 4M web.img
tidemark replicate web.img --disk web --vault dir:shipped

# At the other site, when the shipped disk has arrived. Here `dir:remote` stands for that vault.
tidemark copy --from dir:shipped --to dir:remote

# From now on the source replicates there itself, and sends what differs.
printf 'day 2' | dd of=web.img conv=notrunc status=none
tidemark replicate web.img --disk web --vault dir:remote --json

# A second site gets each new point by differences, whenever the copy is repeated.
tidemark copy --from dir:remote --to dir:second --points days:7

# A raw image at the target side is a seed, too: it becomes the first point.
cp web.img arrived.img
tidemark replicate arrived.img --disk db --vault dir:remote
printf 'day 3' | dd of=web.img conv=notrunc status=none
tidemark replicate web.img --disk db --vault dir:remote
tidemark points list --disk web --vault dir:second
