#!/usr/bin/env bash
# Sees that there is a Chromium, which the tests of the report's page drive. Called by `make test`; nothing else needs it.
# Where it cannot be had, those tests fail and say so; the others run.
set -euo pipefail

for browser in chromium chromium-browser google-chrome; do
    if command -v "$browser" >/dev/null; then exit 0; fi
done
remedy="sudo apt-get update && sudo apt-get install -y chromium"
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    printf 'browser: no Chromium, so the tests of the report will fail. Install one, on Debian with: %s\n' "$remedy" >&2
    exit 0
fi
printf 'browser: installing Chromium for the tests of the report\n'
if ! log=$( (apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y \
    --no-install-recommends chromium) 2>&1); then
    printf '%s\n' "$log" | tail -n 3 >&2
    printf 'browser: apt-get could not install chromium, so the tests of the report will fail\n' >&2
fi
