"""All drawing: the only package that imports matplotlib (extra ``metrics``).

Files hold no date, so that the same numbers give the same bytes. One module per kind of picture:
``run_curves`` (a training run), ``objectives``, ``magnitudes``, ``lengths`` (EMA profiles),
``sweep``, ``images`` (rows of named images), ``toy``; all of them begin and end with ``figure``.
"""
