#!/usr/bin/env bash
# Sees that there are a Chromium, which the tests of the report's page drive, and rsync, with which those of the store copy one.
# Called by `make test`; nothing else needs them. Where one cannot be had, its tests fail and say so; the others run.
set -euo pipefail

missing=()
if ! command -v chromium >/dev/null && ! command -v chromium-browser >/dev/null && ! command -v google-chrome >/dev/null; then
    missing+=(chromium)
fi
if ! command -v rsync >/dev/null; then missing+=(rsync); fi
if [ ${#missing[@]} = 0 ]; then exit 0; fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    printf 'test-tools: tests that need %s will fail. Install it, on Debian with: ' "${missing[*]}" >&2
    printf 'sudo apt-get update && sudo apt-get install -y %s\n' "${missing[*]}" >&2
    exit 0
fi
printf 'test-tools: installing %s\n' "${missing[*]}"
if ! log=$( (apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y \
    --no-install-recommends "${missing[@]}") 2>&1); then
    printf '%s\n' "$log" | tail -n 3 >&2
    printf 'test-tools: apt-get could not install %s, so the tests that need it will fail\n' "${missing[*]}" >&2
fi
