"""kd_lightning: distil a large language model into a small one, on PyTorch Lightning."""

import os

__version__ = "0.1.0"

# transformers would fetch kernels for some layers where `kernels` is installed (security/native.py)
os.environ.setdefault("USE_HUB_KERNELS", "NO")
