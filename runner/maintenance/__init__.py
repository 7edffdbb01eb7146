"""Background upkeep of the queue and of this host. Every runner does all of it; doing it many times does no harm, so
there is no leader to lose.
"""
