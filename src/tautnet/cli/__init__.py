"""Commands of ``python -m tautnet``, one file each.

Each has ``HELP``, ``DESCRIPTION`` and ``EXAMPLE``, ``add_arguments(parser)`` and ``run(arguments) -> exit status``,
and imports nothing heavy before it runs.
"""
