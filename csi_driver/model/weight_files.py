"""Files that hold the weights of a model, by their names: a program that loads one reads all of it."""

from __future__ import annotations

WEIGHT_SUFFIXES = (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".ckpt", ".onnx")


def is_weight_file(path: str) -> bool:
    """Whether the name of a file or object is one of weights. ``.bin`` may be data of another kind."""
    return path.lower().endswith(WEIGHT_SUFFIXES)
