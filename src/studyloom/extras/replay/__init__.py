"""`studyloom replay`: trains a trial again, and prints how the result compares.

Present files in conf/ are not read. All code that the trial names is checked before any of it is
called, because a database may be untrusted.
"""
