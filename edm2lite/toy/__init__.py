"""Guidance in two dimensions, where the true density is known: ``edm2lite toy``.

``density`` is the data, ``model`` a small denoiser and its training, ``experiment`` compares three
kinds of guidance; ``edm2lite.plotting.toy`` draws them.
"""
