"""kd_lightning: distil a large language model into a small one, on PyTorch Lightning."""

__version__ = "0.1.0"
