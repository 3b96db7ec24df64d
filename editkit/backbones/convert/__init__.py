"""Converters: from the files that authors publish to the layouts that editkit reads, one file for each source layout.

A file is read as data alone (`reading`, `torchscript`), its layout is recognised by the names and shapes of its tensors
(`layouts`), and all that the architecture needs is derived from the shapes.
"""
