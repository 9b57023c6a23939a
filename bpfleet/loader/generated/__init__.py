"""Generated from the C headers; see tools/build_objects.py."""
