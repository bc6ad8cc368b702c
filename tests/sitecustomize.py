"""Python reads this when it starts with this folder on PYTHONPATH, as processes of tests do."""

import offline

offline.start()
