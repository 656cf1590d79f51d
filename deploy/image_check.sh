#!/usr/bin/env bash
# The Dockerfile's steps in a clean folder, for machines without a Docker engine.
set -euo pipefail
cd "$(dirname "$0")/.."
lock=${1:-lock/runtime.txt}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
chmod 755 "$folder"
git ls-files -z | xargs -0 cp --parents -t "$folder"
cd "$folder"
deploy/image_steps.sh install "$lock" "$folder/opt"
command=("$folder/opt/bin/headrace")
# As another user, as in the image, where this machine's interpreter can be reached by one.
other=(setpriv --reuid nobody --clear-groups env HOME="$folder/home" HEADRACE_HOME="$folder/home/state")
mkdir home
if [ "$(id -u)" = 0 ] && chown nobody home && "${other[@]}" "$folder/opt/bin/python" -c '' 2>/dev/null; then
  command=("${other[@]}" "${command[@]}")
else
  echo "not run as another user: the interpreter is out of its reach here"
fi
"${command[@]}" version
"${command[@]}" check examples/demo.yaml
echo "the image's steps work"
