"""`python -m provider ENGINE_ADDRESS`: what the launcher runs."""

import sys

from provider.server import main

sys.exit(main(sys.argv[1:]))
