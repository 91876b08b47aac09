"""``python -m stateful_workflow`` is the command ``stateful``."""

from .cli import main

main()
