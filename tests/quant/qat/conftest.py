from drawn_sets import data, one_thread  # noqa: F401 (fixtures)
