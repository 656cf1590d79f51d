#!/usr/bin/env bash
# The steps of the image, called by the Dockerfile and by image_check.sh alike.
#   image_steps.sh compiler              install a C compiler
#   image_steps.sh install LOCK TARGET   install the lock, and a compiled wheel of what is here, into TARGET
#   image_steps.sh user NAME             make the user that the image runs as
set -euo pipefail

compiler() {
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends gcc libc6-dev
}

install() {
  local lock=$1 target=$2 tools
  python3 -m venv "$target"
  "$target/bin/pip" install --quiet --no-cache-dir --require-hashes -r "$lock"
  # Built with what it runs with: the compiler reads the types of the packages that it calls.
  tools=$(mktemp -d)
  "$target/bin/pip" install --quiet --no-cache-dir --target "$tools" hatchling mypy setuptools types-PyYAML
  PYTHONPATH=$tools "$target/bin/python" -m hatchling build -t wheel -d dist
  rm -rf "$tools"
  "$target/bin/pip" install --quiet --no-cache-dir --no-deps dist/*.whl
  # The image's user cannot write bytecode later, and Ray is seconds slower without it.
  env -u PYTHONDONTWRITEBYTECODE "$target/bin/python" -m compileall -q -j 0 "$target/lib" || true
}

user() {
  useradd --system --create-home --uid 10001 "$1"
}

"$@"
