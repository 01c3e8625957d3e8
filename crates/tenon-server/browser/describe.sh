#!/usr/bin/env bash
# The server against its own OpenAPI document: schemathesis sends what fits it and what does not, and
# looks that no answer is a failure of the server or one that the document does not have.
#
# usage: describe.sh SCHEMATHESIS   (TENON is the binary; target/release/tenon unless said otherwise)
set -euo pipefail
root=$(cd "$(dirname "$0")/../../.." && pwd)
work=$(mktemp -d)
export TENON_HOME="$work/home" TENON_LOG=error
tenon=${TENON:-$root/target/release/tenon}

# Something to find, so that not every answer is 404.
"$tenon" save "$root/fixtures/kjv-llama/adapter-lora" --base "$root/fixtures/kjv-llama/base" > "$work/save" 2>&1 || { cat "$work/save"; exit 1; }
"$tenon" serve --listen 127.0.0.1:0 --no-work --allow-path "$root/fixtures/kjv-llama" > "$work/address" 2> "$work/log" &
server=$!
trap 'kill "$server"; wait "$server" || true; rm -rf "$work"' EXIT
for _ in $(seq 100); do grep -q http "$work/address" && break; sleep 0.1; done
address=$(grep -o 'http://[^/]*' "$work/address")

# Streams do not end; the others are asked as often as CI has time for.
status=0
"$1" run "$address/api/v1/openapi.json" --exclude-path /api/v1/events --phases examples,coverage,fuzzing --max-examples "${EXAMPLES:-15}" \
    --checks not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,response_schema_conformance,unsupported_method \
    --seed 7 --request-timeout 30 --suppress-health-check all --no-color || status=$?
[ "$status" = 0 ] || cat "$work/log"
exit "$status"
