"""The public Python API: one handle for a model of any kind, and the steps from weights to a measured engine.

Its names are those of ``repq`` itself; nothing heavy loads before a model is opened.
"""
