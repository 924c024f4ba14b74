"""Faster ways to compute what the layers define; tests compare each of them with the plain form.

``dispatch`` says when operations of our own may be used, ``convolution`` chooses the kernel of a
convolution, ``prepared`` replaces layers in the copy of a network that only samples, and
``step_weights`` in the copy that the micro-batches of a compiled training step run on.
"""
