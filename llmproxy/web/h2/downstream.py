"""The client's side of one exchange, where that is a stream of HTTP/2."""

from __future__ import annotations

from collections.abc import Iterable

from llmproxy.relay.downstream import Downstream

__all__ = ["StreamDownstream"]


class StreamDownstream(Downstream):
    """Writes one answer; its end needs no framing but the stream's own."""

    def data(self, pieces: Iterable[bytes]) -> None:
        """See :class:`~llmproxy.relay.downstream.Downstream`."""
        stream = self._request.channel
        head, self._pending = self._pending, b""
        body = b"" if self._bodiless else b"".join(pieces)
        self.sent += len(body)
        if stream is None:
            return
        if head:
            stream.send_head(head)
        if body:
            stream.write(body)

    def end(self) -> None:
        """See :class:`~llmproxy.relay.downstream.Downstream`."""
        self.flush()
        if self._request.channel is not None:
            self._request.finish()

    def close(self) -> None:
        """There are no tunnels."""
        raise AssertionError("nothing switches protocols in HTTP/2")

    def break_off(self) -> None:
        """See :class:`~llmproxy.relay.downstream.Downstream`."""
        self.flush()
        if self._request.channel is not None:
            self._request.channel.break_off()
