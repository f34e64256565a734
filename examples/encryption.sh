# examples/encryption.sh: a vault that its writer cannot read, a restore, and a key that is replaced
set -eu
export TIDEMARK_VAULT=dir:vault
truncate -s 16M web.img
printf 'content' | dd of=web.img bs=1M seek=1 conv=notrunc status=none

# The administrator's keys. They are kept where no server that is replicated can read them.
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ops.key -out ops.pem -subj /CN=ops -days 3650 2>/dev/null
openssl rand -base64 33 > paper.txt                      # a second way in: print it, and lock it away

tidemark vault init --encrypt --certificate ops.pem --passphrase-file paper.txt --state admin
tidemark vault keys enroll --key ops.key --state server  # from now on the folder `server` is enough to write

tidemark replicate web.img --disk web --state server     # as the server does, without a key
tidemark points list --disk web --state server
! tidemark verify --state server                         # exit code 12: it cannot read what it wrote

tidemark verify --key ops.key --state admin
TIDEMARK_PASSPHRASE_FILE=paper.txt tidemark materialize --disk web --point latest --to back.img --state admin

# The key has been copied: a new certificate, without the old one, and a new vault key
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout new.key -out new.pem -subj /CN=ops -days 3650 2>/dev/null
tidemark vault keys add --certificate new.pem --key ops.key --state admin
tidemark vault keys remove ops.pem --key new.key --state admin
tidemark vault keys rotate --key new.key --state admin
tidemark vault keys enroll --key new.key --state server
tidemark replicate web.img --disk web --state server
tidemark verify --key new.key --state admin
