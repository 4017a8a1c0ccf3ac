"""The worker by its former name: a watchdog of 0.1 that becomes this version asks for it once."""

import sys

from tidegate.gateway.worker import main

sys.exit(main())
