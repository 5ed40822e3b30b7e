"""Landmark recognition with VGG-16 and an Attention Branch Network, as a reproducible pipeline."""

# Imported first, because it sets variables that numpy and torch read when they are loaded.
from landmarks import determinism as determinism
