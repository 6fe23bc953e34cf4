#!/usr/bin/env bash
# Two kind clusters that share one device; see README.md beside this file.
set -euo pipefail
cd "$(dirname "$0")"
work=${DRAGOMAN_QUICKSTART:-$PWD/work}
image=dragoman:quickstart
url=tls://dragoman-nats:4222

for program in docker kind kubectl helm dragoman; do
  command -v "$program" > /dev/null || { echo "$program is not on the PATH: see README.md" >&2; exit 2; }
done

echo "--- the image"
docker build --quiet --file ../Dockerfile --tag "$image" ../..

echo "--- the clusters"
for cluster in east west; do
  # Not --quiet, which ends at the first line that fits: what kind writes after that would be its failure.
  kind get clusters | grep --line-regexp "$cluster" > /dev/null || kind create cluster --name "$cluster" --wait 120s
  kind load docker-image --name "$cluster" "$image"
done

echo "--- NATS, in kind's network so that pods reach it by its name"
mkdir -p "$work"
[ -d "$work/nats" ] || dragoman nats-config --dir "$work/nats" --cluster hub --cluster east --cluster west \
  --host dragoman-nats --store-dir /store --dev-ca
docker inspect dragoman-nats > /dev/null 2>&1 || docker run --detach --name dragoman-nats --network kind \
  --volume "$work/nats:/nats:ro" --workdir /nats nats:2.14-alpine -c n1.conf
in_network() {
  docker run --rm --network kind --user "$(id -u)" --volume "$work:/work" "$image" "$@"
}
for attempt in $(seq 30); do
  in_network nats-setup --nats "$url" --nkey /work/nats/keys/setup.nk --tls-ca /work/nats/tls/ca.crt && break
  [ "$attempt" -lt 30 ] || { echo "NATS does not answer: docker logs dragoman-nats" >&2; exit 1; }
  sleep 1
done

echo "--- broker and agents"
install() { # context, release, values, key, arguments
  local context=kind-$1 release=$2 values=$3 key=$4
  shift 4
  kubectl --context "$context" create namespace dragoman --dry-run=client --output yaml | kubectl --context "$context" apply --filename -
  kubectl --context "$context" --namespace dragoman create secret generic "$release" --dry-run=client --output yaml \
    --from-file="$work/nats/keys/$key" --from-file="$work/nats/tls/ca.crt" | kubectl --context "$context" apply --filename -
  helm --kube-context "$context" --namespace dragoman upgrade --install "$release" "../helm/${release#dragoman-}" --values "$values" "$@"
}
install east dragoman-broker broker-values.yaml broker.nk
install east dragoman-agent agent-values.yaml agent-east.nk --set cluster=east
install west dragoman-agent agent-values.yaml agent-west.nk --set cluster=west

echo "--- the hub: a directory of manifests"
mkdir -p "$work/inventory" "$work/hub-data"
cp inventory.yaml "$work/inventory/"
docker inspect dragoman-hub > /dev/null 2>&1 || docker run --detach --name dragoman-hub --network kind --user "$(id -u)" \
  --volume "$work:/work" "$image" agent --cluster hub --manifests /work/inventory --data /work/hub-data \
  --nats "$url" --nkey /work/nats/keys/agent-hub.nk --tls-ca /work/nats/tls/ca.crt

echo "--- one pod in each cluster, one device for both"
for cluster in east west; do
  kubectl --context "kind-$cluster" wait --for=create deviceclass/fabric-gpu --timeout=120s
done
kubectl --context kind-east apply --filename train.yaml
kubectl --context kind-east wait --for=condition=PodScheduled pod/train --timeout=120s
kubectl --context kind-west apply --filename train.yaml
in_network claims --nats "$url" --nkey /work/nats/keys/operator.nk --tls-ca /work/nats/tls/ca.crt
echo
echo "Now give the device to west: kubectl --context kind-east delete pod train"
