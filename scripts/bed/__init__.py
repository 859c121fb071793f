"""The test bed: network namespaces as devices, a switch that keeps delay and rate.

From the ground up: quantities, topology (pure); kernel, cgroups, files, state; devices, switch,
netem; assembly, launch, selftest; private, flags; command.
"""
