#!/bin/sh
# `make release`: whether this tree can be released. The first check that fails is named and ends it.
set -u
bin=$1
tools=build/release/bin
version=$("$bin/python" -c 'import streamcli; print(streamcli.__version__)') || exit

check() {
    what=$1
    shift
    printf '== %s\n' "$what"
    "$@" || { printf 'make release: stopped at: %s\n' "$what" >&2; exit 1; }
}

clean() { changed=$(git status --porcelain) && [ -z "$changed" ]; }
described() { grep -m 1 '^## ' CHANGELOG.md | grep -q "^## \[$version\] - 20..-..-..$"; }
untagged() { tagged=$(git tag --list "v$version") && [ -z "$tagged" ]; }
install_checks() {
    "$bin/python" -m venv build/release && "$tools/pip" install --quiet twine check-wheel-contents 'validate-pyproject[all]'
}
can_lint_deb() { command -v dpkg-deb && command -v lintian; } > /dev/null

check 'all is committed' clean
check "CHANGELOG.md begins with [$version] and its date" described
check "there is no tag v$version" untagged
check 'make lint' make lint
check 'dist is empty' rm -rf dist
check 'make dist' make dist
check 'the tests on the wheel' sh packaging/wheel_test.sh "$bin/python" highest
check 'the tests on the wheel, with the lowest versions' sh packaging/wheel_test.sh "$bin/python" lowest-direct
# Servers of other people come from a network.
check 'make e2e' env PYTEST_ADDOPTS='--ignore=tests/test_servers.py --ignore=tests/test_http_parts.py' make e2e
check 'twine and other checks are installed' install_checks
check 'twine check' "$tools/twine" check --strict dist/*
check 'check-wheel-contents' "$tools/check-wheel-contents" dist/*.whl
check 'validate-pyproject' "$tools/validate-pyproject" pyproject.toml
if can_lint_deb; then
    check 'make deb' make deb
    check 'lintian' lintian --fail-on error,warning dist/*.deb
else
    echo '== make deb: left out, without dpkg-deb and lintian'
fi

cat << END

streamcli $version can be released. What is left to a person:
  make e2e and make bench, with a network and a quiet machine; their figures in README.md and streamcli(7)
  git tag -s v$version -m 'streamcli $version' && git push origin v$version
  $tools/twine upload dist/streamcli-$version*.whl dist/streamcli-$version.tar.gz
  DEBFULLNAME=... DEBEMAIL=... make deb on each release of Debian that is to have a package
  make wheel-test PYTHON=... with each Python that pyproject.toml names
  say so, with what CHANGELOG.md says; then a new version in streamcli/version.py, and make docs
END
