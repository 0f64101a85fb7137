"""ABSGD in other training loops: Lightning, HF Trainer, timm, and beside Adam."""
