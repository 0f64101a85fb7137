"""``python -m torch_absgd`` prints what a bug report needs."""

from ._config import show_config

show_config()
