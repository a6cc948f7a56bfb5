"""TensorFlow, imported without its noise, and with thread pools that belong to the session that asked for them.

Everything in this package takes `tf` from here, so that the environment is set before the shared library reads it.
"""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

# 3 silences everything but fatal messages; whoever wants the log sets the variable.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Otherwise the first session of a process fixes the number of threads of all later ones.
os.environ.setdefault("TF_OVERRIDE_GLOBAL_THREADPOOL", "1")
# The int8 kernels are registered with or without it, but the float baseline deserves oneDNN as well.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

with warnings.catch_warnings():
    # numpy's own deprecations inside tensorflow and keras are nobody's business here.
    warnings.simplefilter("ignore")
    import tensorflow as tf

if os.environ["TF_CPP_MIN_LOG_LEVEL"] == "3":
    logging.getLogger("tensorflow").setLevel(logging.ERROR)

VERSION: str = tf.__version__
GraphDef: Any = tf.compat.v1.GraphDef
NodeDef: Any = tf.compat.v1.NodeDef

__all__ = ["VERSION", "GraphDef", "NodeDef", "tf"]
