"""``python -m stateful_workflow.cli`` is the command ``stateful``."""

from . import main

main()
