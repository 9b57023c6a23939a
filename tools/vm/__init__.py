"""Hosts with a kernel of their own, for tests/vm: Debian images made here, booted by qemu without KVM.

    python -m tools.vm ensure            install what is missing on this machine, build the images that are missing
    python -m tools.vm boot trixie       boot one, say how to log in, and end it on Ctrl-C

recipe.py says what an image is, image.py builds and caches it, network.py makes the private network that the machines
hang on (and a guard that removes it and them when the test process dies), machine.py boots one and runs commands there.
"""
