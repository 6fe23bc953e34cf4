"""Manifests: YAML and JSON files as people write them for Kubernetes."""

from schemas.manifests.reader import Document, ManifestSet, parse_manifests, read_manifests

__all__ = ["Document", "ManifestSet", "parse_manifests", "read_manifests"]
