#!/usr/bin/env bash
# Removes what up.sh made.
set -euo pipefail
cd "$(dirname "$0")"
docker rm --force dragoman-hub dragoman-nats
kind delete cluster --name east
kind delete cluster --name west
rm -rf "${DRAGOMAN_QUICKSTART:-$PWD/work}"
