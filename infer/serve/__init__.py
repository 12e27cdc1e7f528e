"""seg-serve: a DICOM node that segments what it is sent and stores the result. Needs the extra `serve`.

node.py receives, queue.py remembers, worker.py segments, sender.py delivers, web.py shows; service.py is all of them in
one process. Nothing here trusts a received value: no name of a file, no line of a log and no address comes from one.
"""
