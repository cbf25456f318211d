#!/bin/sh
# Builds the C++ client and runs it against a server that this script starts. Run it from the checkout, with the
# project's Python first in PATH. Debian: g++ cmake pkg-config libgrpc++-dev libprotobuf-dev protobuf-compiler
# protobuf-compiler-grpc.
set -eu
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'kill "$server" 2>/dev/null || true; rm -rf "$work"' EXIT
server=

cmake -S examples/cpp -B "$work/build" >"$work/cmake.log" || { cat "$work/cmake.log"; exit 1; }
cmake --build "$work/build"

python -m auroraedge.cli samples "$work/parts" --count 2 >/dev/null
python -m service --port 0 --threads 1 >"$work/server.log" 2>&1 &
server=$!
until grep -q "is ready on" "$work/server.log"; do
  kill -0 "$server" || { cat "$work/server.log"; exit 1; }
  sleep 0.2
done
address=$(sed -n 's/.*is ready on \([^:]*:[0-9]*\):.*/\1/p' "$work/server.log")

status=0
"$work/build/inspect" "$address" "$(find "$work/parts" -name '*.png' | sort | head -n 1)" magnetic_tile || status=$?
[ "$status" -eq 0 ] || [ "$status" -eq 3 ] # 3: inspected, and not OK
"$work/build/inspect" "$address" "$0" magnetic_tile && exit 1 || echo "a file that is no picture: refused, as it should be"
