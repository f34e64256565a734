# examples/agent.sh: run the agent of agent.yaml, take a point of both disks, and stop it
set -eu
export TIDEMARK_SOCKET=agent.sock
truncate -s 16M pg-data.img pg-log.img
mkdir copies
tidemark agent --config agent.yaml --check

tidemark agent --config agent.yaml &
agent=$!
until [ -S pg.sock ]; do sleep 0.1; done # clients may connect from now on

# One point of each disk, cut at one barrier. It is refused until both disks are protected.
until tidemark agent point --group gold; do sleep 0.1; done
tidemark agent status
tidemark agent stop # last points, then the agent ends
wait "$agent"
tidemark points list --disk pg-data --vault dir:vault
