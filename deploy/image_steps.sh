#!/usr/bin/env bash
# The steps of the image, called by the Dockerfile and by image_check.sh alike.
#   image_steps.sh install LOCK TARGET   install the lock and the wheel beside it into TARGET
#   image_steps.sh user NAME             make the user that the image runs as
set -euo pipefail

install() {
  local lock=$1 target=$2
  python3 -m venv "$target"
  "$target/bin/pip" install --quiet --no-cache-dir --require-hashes -r "$lock"
  "$target/bin/pip" install --quiet --no-cache-dir --no-deps dist/*.whl
  # The image's user cannot write bytecode later, and Ray is seconds slower without it.
  env -u PYTHONDONTWRITEBYTECODE "$target/bin/python" -m compileall -q -j 0 "$target/lib" || true
}

user() {
  useradd --system --create-home --uid 10001 "$1"
}

"$@"
