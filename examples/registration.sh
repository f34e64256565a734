# examples/registration.sh: a machine that registers, replicates what its key allows, and is removed
set -eu

# The operator makes a key for one machine.
tidemark vault init --vault dir:vault
tidemark vault key --name web01 --disks 'web-*' --out web01.key --vault dir:vault

# The machine registers. Its configuration then names the vault; the rest of it follows.
tidemark agent register --key web01.key --state state --config agent.yaml
rm web01.key
truncate -s 16M web.img
cat >> agent.yaml <<'YAML'
policies:
  gold: {crashConsistentFrequency: 1m}
disks:
  - {name: web-1, image: web.img, vault: main, policy: gold, listen: "unix:nbd.sock"}
control: {socket: agent.sock}
YAML
tidemark agent --config agent.yaml --check
tidemark agent --config agent.yaml &
until tidemark agent point --disk web-1 --socket agent.sock; do sleep 0.2; done
tidemark agents list --vault dir:vault

# New credentials for the agent, which runs on. The new key also allows another disk.
tidemark vault key --name web01 --disks 'web-*' mail --out new.key --vault dir:vault
tidemark agent register --renew --key new.key --state state
tidemark agent point --disk web-1 --socket agent.sock

# The operator removes the agent. Its old keys are refused from then on; its points stay.
tidemark agents remove web01 --vault dir:vault
! tidemark agent register --key new.key --state state
tidemark points list --disk web-1 --vault dir:vault
tidemark agent stop --socket agent.sock
wait
