"""What finished runs have to show: their files read, runs compared, figures drawn, pages written.

``records`` reads a run's directory, ``variants`` and ``comparison`` set runs against each other, ``charts`` and
``learned`` draw, ``run_page`` and ``sweep_page`` write HTML.
"""
