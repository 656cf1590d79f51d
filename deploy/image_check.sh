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
python3 -m venv build-tools
build-tools/bin/pip install --quiet hatchling build
build-tools/bin/python -m build --quiet --wheel --no-isolation --outdir dist .
deploy/image_steps.sh install "$lock" "$folder/opt"
command=("$folder/opt/bin/headrace")
if [ "$(id -u)" = 0 ] && id nobody >/dev/null 2>&1; then
  command=(setpriv --reuid nobody --clear-groups env HOME="$folder/home" "${command[@]}")
  mkdir home && chown nobody home
fi
"${command[@]}" version
"${command[@]}" check examples/demo.yaml
echo "the image's steps work"
