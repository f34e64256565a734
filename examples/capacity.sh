# examples/capacity.sh: what replication of a disk that is written would need
set -eu
truncate -s 64M web.img
dd if=/dev/urandom of=web.img bs=1M count=8 conv=notrunc status=none

# A program that writes to the disk, for the sake of the example
i=0
while [ "$i" -lt 40 ]; do
  dd if=/dev/urandom of=web.img bs=4k count=8 seek=$((i * 37 % 2000)) conv=notrunc status=none
  i=$((i + 1)) && sleep 0.1
done &

tidemark capacity profile --disk web.img --for 4s --out web.profile    # a week, not 4 s, for a disk of yours
wait
tidemark capacity report web.profile --bandwidth 10Mbit/s,100Mbit/s --retention days:7 --growth 30% \
  --prices prices.yaml --page plan.html
tidemark vault init --vault dir:vault
tidemark capacity throughput --vault dir:vault --for 1s
