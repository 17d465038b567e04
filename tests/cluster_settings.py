"""How does a Ray of several nodes behave in tests?"""

QUICK_TO_SEE = {
    "idle_worker_killing_time_threshold_ms": 60_000,
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 4,
}
"""Settings of a Ray that sees within seconds that a node is gone, not within half a minute, and keeps its
processes as an embedded one does."""
