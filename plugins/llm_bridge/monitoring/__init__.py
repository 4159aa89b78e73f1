"""Follow a job from a trigger: relay its output, notice hangs and long queue waits, and send alerts about them."""
