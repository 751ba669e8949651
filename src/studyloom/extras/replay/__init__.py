"""`studyloom replay`: trains a trial again, and prints how the result compares.

The conf/ files of today play no part. Everything that the trial names is checked before any of it
is called, because a database may be untrusted.
"""
