"""Programs that measure tpcal; they are no part of the package."""
