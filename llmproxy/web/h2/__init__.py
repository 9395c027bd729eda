"""HTTP/2 towards clients (RFC 9113): framing by the ``h2`` library, all else as for HTTP/1.1.

A connection (:mod:`~llmproxy.web.h2.connection`) has streams (:mod:`~llmproxy.web.h2.stream`), and each of
those is to its request what a :class:`~llmproxy.web.channel.ProxyChannel` is: site, resources, routing, keys,
holds and the relay know nothing of it.  Towards backends all is HTTP/1.1.

Loaded when the first client asks for it.
"""
