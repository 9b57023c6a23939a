"""The Pulumi plugin `pulumi-resource-bpfleet`.

    server.py      the process: options, plugin protocol, its end
    sdk.py         what pulumi.provider.experimental leaves out or gets wrong, and nothing else
    engine.py      messages to the user, through the engine
    provider.py    the operations, by resource type: check, diff, create, read, update, delete
    values.py      Pulumi's property values <-> plain data with the schema's names
    checking.py    check, pure          differing.py  diff, pure          naming.py  ids and owners, pure
    batching.py    which calls in flight become one transaction, pure, and the task that drives it
    directory.py   who is in a cluster and how each member is reached
    writing.py     documents onto all members: refusals, next identity numbers, lagging nodes
    nodes.py  clusters.py  leaves.py   the operations of each kind of resource

Only worker threads block; the asyncio loop never does.
"""
