#!/usr/bin/env bash
# Compile the two locks: with hashes, for both Pythons, without index addresses.
set -euo pipefail
cd "$(dirname "$0")/.."
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
python3 -m venv "$tools"
"$tools/bin/pip" install --quiet uv
common=(--universal --python-version 3.11 --generate-hashes --no-header --no-annotate
  --quiet)
develop=(--extra demo --extra media --extra loadtest --extra dev --extra redis)
run=(--extra tensorflow --extra redis --extra media)
uv=("$tools/bin/uv" pip compile "${common[@]}")
"${uv[@]}" pyproject.toml "${develop[@]}" -o lock/cpu.txt
"${uv[@]}" pyproject.toml "${run[@]}" --extra cpu -o lock/runtime.txt
# For the build of `price` alone: see models/side_packages.py.
echo "pandas>=3,<4" >"$tools/pandas.in"
"${uv[@]}" "$tools/pandas.in" --no-deps -o lock/pandas.txt
# For client tests alone: see tests/clients/packages.py.
printf '%s\n' kserve==0.21.0 'cloudevents<2' deprecation durationpy grpc-interceptor kubernetes \
  oauthlib 'pandas<3' pytz requests-oauthlib tabulate timing-asgi >"$tools/kserve.in"
echo "tensorflow-serving-api==2.21.0" >"$tools/tensorflow-serving-api.in"
printf '%s\n' tritonclient==2.47.0 nvidia-cuda-runtime-cu12==12.9.79 >"$tools/perf-analyzer.in"
for name in kserve tensorflow-serving-api perf-analyzer; do
  "${uv[@]}" "$tools/$name.in" --no-deps -o "lock/$name.txt"
done
# The same with the GPU builds in place of the CPU builds, never beside them.
sed -e 's/headrace\[cpu,tensorflow,media\]/headrace[gpu,tensorflow,media]/' \
  -e 's/tensorflow-cpu==/tensorflow==/' pyproject.toml >"$tools/pyproject.toml"
cp README.md "$tools/"
"${uv[@]}" "$tools/pyproject.toml" "${develop[@]}" -o lock/gpu.txt
"${uv[@]}" "$tools/pyproject.toml" "${run[@]}" --extra gpu -o lock/runtime-gpu.txt
