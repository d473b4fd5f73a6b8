"""For every suite: hypothesis repeats itself from run to run and keeps no examples."""

from hypothesis import settings

settings.register_profile("rayrec", database=None, deadline=None, derandomize=True)
settings.load_profile("rayrec")
