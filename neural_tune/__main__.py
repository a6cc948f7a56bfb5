"""`python -m neural_tune` is `neural-tune`."""

import sys

from neural_tune.cli import main

sys.exit(main())
