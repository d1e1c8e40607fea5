# What `make demo` shows: one real model, one prompt, three forms of answer.
set -eu
prompt='Name three colours of the rainbow.'
show() {
    printf '\n$ %s\n' "$1"
    sh -c "$1"
}
show "streamcli --local --max-tokens 60 '$prompt'"
show "streamcli --local --max-tokens 60 --events '$prompt'"
show "streamcli --local --max-tokens 60 --summary '$prompt'"
