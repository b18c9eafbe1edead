"""Programs that measure tpcal; they are not part of the package."""
