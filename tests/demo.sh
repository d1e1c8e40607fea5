# What `make demo` shows: a small model on this machine, asked through its real server. No key, no account, no network.
set -u
question='Give me three tips for writing clear code.'
if [ -t 1 ]; then bold='\033[1m' plain='\033[0m'; else bold='' plain=''; fi
show() {
    printf "\\n$bold# %s\\n$ %s$plain\\n" "$1" "$2"
    sh -c "$2"
    printf '\n[exit status %s]\n' "$?"
}
cat <<'END'

The answers come from a model of 135 million parameters: small, often wrong, but real.
END
show 'The answer streams; -u prints what it used.' "streamcli --local --temperature 0 -u '$question'"
show 'Standard input is the context, the argument is the question.' \
    "echo 'The sea is blue. The grass is green.' | streamcli --local --temperature 0 --stop ' This' 'What colour is the sea?'"
show 'Programs can read every event as JSON; these are the last two.' "streamcli --local --temperature 0 --events 'What is 2+2?' | tail -n 2"
show 'With --fail-on max_tokens, an answer that was cut is a failure.' \
    "streamcli --local --temperature 0 --max-tokens 9 --fail-on max_tokens '$question'"
printf '\nThe command is %s.\nTo use it with a key, Ollama or llama.cpp, see "First steps" in README.md.\n' "$(command -v streamcli)"
