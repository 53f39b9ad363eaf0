"""Moonpool's own Python: the tooling behind ./moonpool. The drop-in for Mooncake lives beside it in python/mooncake.

Everything here but make_model.py runs on the standard library alone, because it is what installs the rest.
"""
