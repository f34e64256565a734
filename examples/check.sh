# examples/check.sh: look at a store before anything relies on it
export TIDEMARK_VAULT=dir:vault
tidemark vault init
tidemark check
