"""Programs that try to break the plugin, each by one command: tests/stress/run NAME.

What breaks is a failure, printed with what makes it again (the seed); the figures of a
run are printed last and can be kept as JSON. The suite runs each program's short form.
"""
