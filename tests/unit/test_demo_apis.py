"""The demo server's other APIs: read by the types of the packages that speak them."""

from __future__ import annotations

import json
from array import array
from base64 import b64decode
from typing import Any

from anthropic.types import Message, MessageTokensCount, RawMessageStreamEvent
from openai.types import CreateEmbeddingResponse
from openai.types.audio import Transcription
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from twisted.internet.testing import StringTransport

from llmproxy.demo.settings import Settings
from llmproxy.demo.shapes import ENGINE_DEAD
from llmproxy.demo.websocket import Echo
from tests.unit.test_demo import Answer, DemoCase

SAY = {"model": "demo", "max_tokens": 4, "messages": [{"role": "user", "content": "good morning"}]}
RESPOND = {"model": "demo", "input": "good morning", "max_output_tokens": 4}


def events(answer: Answer) -> list[tuple[str, Any]]:
    """Name and data of each event; the data's type is its event's name."""
    found = []
    for block in answer.body.decode().replace("<end>", "").split("\n\n")[:-1]:
        name, data = block.split("\n")
        value = json.loads(data.removeprefix("data: "))
        assert name == f"event: {value['type']}"
        found.append((value["type"], value))
    return found


class MessagesTests(DemoCase):
    def test_message(self) -> None:
        """A message is Anthropic's, with why it ended and what it took."""
        answer = self.post(SAY, "/v1/messages")
        self.run_out()
        message = Message.model_validate_json(answer.body)
        self.assertEqual(
            [block.text for block in message.content if block.type == "text"], ["You said: good morning"]
        )
        self.assertEqual((message.stop_reason, message.usage.input_tokens), ("max_tokens", 2))
        self.assertEqual(message.usage.output_tokens, 4)

    def test_system_and_blocks(self) -> None:
        """The system prompt counts, and content may be blocks."""
        blocks = [{"type": "text", "text": "good"}, {"type": "text", "text": "night"}]
        body = {**SAY, "system": "be brief", "messages": [{"role": "user", "content": blocks}]}
        answer = self.post(body, "/v1/messages")
        self.run_out()
        message = Message.model_validate_json(answer.body)
        self.assertEqual(message.usage.input_tokens, 4)
        self.assertIn("good night", message.model_dump_json())

    def test_stream(self) -> None:
        """A stream has one block with a delta for each token, and no ``[DONE]``."""
        answer = self.post({**SAY, "stream": True}, "/v1/messages")
        self.run_out()
        found = events(answer)
        for _, value in found:
            TypeAdapter[Any](RawMessageStreamEvent).validate_python(value)
        names = ["message_start", "content_block_start", *["content_block_delta"] * 4, "content_block_stop"]
        self.assertEqual([name for name, _ in found], [*names, "message_delta", "message_stop"])
        text = "".join(value["delta"]["text"] for name, value in found if name == "content_block_delta")
        self.assertEqual(text, "You said: good morning")
        self.assertEqual(found[-2][1]["delta"]["stop_reason"], "max_tokens")
        self.assertTrue(answer.body.endswith(b"<end>"))

    def test_count_tokens(self) -> None:
        """Tokens are counted without an answer."""
        answer = self.post({**SAY, "system": "be brief"}, "/v1/messages/count_tokens")
        self.assertEqual(MessagesTests.tokens(answer), 4)

    @staticmethod
    def tokens(answer: Answer) -> int:
        return MessageTokensCount.model_validate_json(answer.body).input_tokens

    def test_refusals(self) -> None:
        """A wrong shape is refused as everywhere in vLLM, what comes later in Anthropic's words."""
        for field in ("messages", "max_tokens"):
            wrong = self.post({**SAY, field: None}, "/v1/messages")
            self.assertEqual((wrong.status, wrong.json["error"]["param"]), (400, field))
        for path in ("/v1/messages", "/v1/messages/count_tokens"):
            unknown = self.post({**SAY, "model": "nope"}, path)
            self.assertEqual((unknown.status, unknown.json["type"]), (404, "error"))
            self.assertEqual(unknown.json["error"]["type"], "NotFoundError")
        fault = self.post(SAY, "/v1/messages", X_Demo_Fault="503")
        self.assertEqual((fault.status, fault.json["type"]), (503, "error"))

    def test_engine_dies(self) -> None:
        """An engine that dies is an error event, or 500; no message ends after it."""
        broken = self.post({**SAY, "stream": True}, "/v1/messages", X_Demo_Fault="error-event=2")
        self.run_out()
        name, value = events(broken)[-1]
        self.assertEqual((name, value["error"]["type"]), ("error", "internal_error"))
        whole = self.post(SAY, "/v1/messages", X_Demo_Fault="error-event")
        self.run_out()
        self.assertEqual((whole.status, whole.json["error"]["message"]), (500, ENGINE_DEAD))

    def test_sleep_cuts(self) -> None:
        """A sleep that aborts ends the message with no reason, after as much as was said."""
        answer = self.post({**SAY, "stream": True}, "/v1/messages", X_Demo_Token_Delay="1")
        for _ in range(3):
            self.clock.advance(1)
        self.resource.work.cut()
        names = [name for name, _ in events(answer)]
        self.assertEqual(names[-3:], ["content_block_stop", "message_delta", "message_stop"])
        self.assertIsNone(events(answer)[-2][1]["delta"]["stop_reason"])
        early = self.post({**SAY, "stream": True}, "/v1/messages", X_Demo_Token_Delay="1")
        self.clock.advance(0)
        self.resource.work.cut()
        self.assertEqual(
            [name for name, _ in events(early)], ["message_start", "message_delta", "message_stop"]
        )


class ResponsesTests(DemoCase):
    def test_response(self) -> None:
        """A response is OpenAI's, with what was asked for in it."""
        answer = self.post({**RESPOND, "instructions": "be brief", "metadata": {"a": "b"}}, "/v1/responses")
        self.run_out()
        response = Response.model_validate_json(answer.body)
        self.assertEqual((response.output_text, response.status), ("You said: good morning", "incomplete"))
        self.assertEqual((response.instructions, response.metadata), ("be brief", {"a": "b"}))
        assert response.usage is not None
        self.assertEqual((response.usage.input_tokens, response.usage.output_tokens), (4, 4))

    def test_stream(self) -> None:
        """A stream numbers its events and ends with the whole response; no ``[DONE]``."""
        body = {**RESPOND, "input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}]}
        answer = self.post({**body, "stream": True}, "/v1/responses")
        self.run_out()
        found = events(answer)
        for _, value in found:
            TypeAdapter[Any](ResponseStreamEvent).validate_python(value)
        self.assertEqual([value["sequence_number"] for _, value in found], list(range(len(found))))
        self.assertEqual([name for name, _ in found[:2]], ["response.created", "response.in_progress"])
        self.assertEqual(found[-1][0], "response.completed")
        whole = Response.model_validate(found[-1][1]["response"]).output_text
        deltas = [value["delta"] for name, value in found if name == "response.output_text.delta"]
        self.assertEqual("".join(deltas), whole)
        self.assertTrue(whole.startswith("You said: hi"))

    def test_sleep_cuts(self) -> None:
        """A sleep that aborts cancels the response; the numbers go on."""
        answer = self.post({**RESPOND, "stream": True}, "/v1/responses", X_Demo_Token_Delay="1")
        for _ in range(3):
            self.clock.advance(1)
        self.resource.work.cut()
        found = events(answer)
        self.assertEqual([value["sequence_number"] for _, value in found], list(range(len(found))))
        self.assertEqual(found[-1][1]["response"]["status"], "cancelled")

    def test_engine_dies(self) -> None:
        """An engine that dies is the end of the connection with no end of message."""
        answer = self.post({**RESPOND, "stream": True}, "/v1/responses", X_Demo_Fault="error-event=2")
        self.run_out()
        self.assertNotIn(b"<end>", answer.body)
        self.assertTrue(answer.transport.disconnecting)

    def test_refusals(self) -> None:
        """No input is 400."""
        self.assertEqual(self.post({"model": "demo"}, "/v1/responses").json["error"]["param"], "input")


class SinglesTests(DemoCase):
    def single(self, body: dict[str, Any], path: str, **headers: str) -> Answer:
        answer = self.post(body, path, **headers)
        self.run_out()
        return answer

    def test_embeddings(self) -> None:
        """The same text has the same vector, as numbers or packed."""
        body = {"model": "demo", "input": ["one two", "three"]}
        found = CreateEmbeddingResponse.model_validate_json(self.single(body, "/v1/embeddings").body)
        self.assertEqual((len(found.data), found.usage.prompt_tokens), (2, 3))
        self.assertAlmostEqual(sum(number**2 for number in found.data[0].embedding), 1)
        packed = self.single({**body, "input": "one two", "encoding_format": "base64"}, "/v1/embeddings").json
        numbers = array("f", b64decode(packed["data"][0]["embedding"]))
        for one, other in zip(numbers, found.data[0].embedding, strict=True):
            self.assertAlmostEqual(one, other, places=6)
        short = self.single({"input": [[1, 2], [3]], "dimensions": 3}, "/v1/embeddings").json
        self.assertEqual([len(each["embedding"]) for each in short["data"]], [3, 3])
        self.assertEqual(self.single({"input": [1, 2]}, "/v1/embeddings").json["usage"]["total_tokens"], 2)
        self.assertEqual(self.single({}, "/v1/embeddings").status, 400)
        self.assertEqual(self.single(body, "/v1/embeddings", X_Demo_Fault="500").status, 500)

    def test_rerank(self) -> None:
        """Documents are ordered by the words that they share with the query."""
        body = {"query": "a red fox", "documents": ["blue", "a red fox", {"content": [{"text": "red"}]}]}
        found = self.single(body, "/v1/rerank").json
        self.assertEqual([each["index"] for each in found["results"]], [1, 2, 0])
        self.assertEqual(found["results"][0]["relevance_score"], 1)
        self.assertEqual(len(self.single({**body, "top_n": 1}, "/v1/rerank").json["results"]), 1)
        self.assertEqual(self.single({"query": "a"}, "/v1/rerank").status, 400)

    def test_score(self) -> None:
        """One text is scored beside each of several, or pair by pair."""
        one = self.single({"text_1": "a b", "text_2": ["a b", "c"]}, "/v1/score").json
        self.assertEqual([each["score"] for each in one["data"]], [1, 0])
        pairs = self.single({"queries": ["a", "b"], "documents": ["b", "b"]}, "/v1/score").json
        self.assertEqual([each["score"] for each in pairs["data"]], [0, 1])
        self.assertEqual(self.single({"text_1": ["a", "b"], "text_2": ["a"] * 3}, "/v1/score").status, 400)

    def form(self, **fields: str | bytes) -> Answer:
        body = b""
        for name, value in fields.items():
            named = "; filename=a.wav" if isinstance(value, bytes) else ""
            body += f'--x\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'.encode()
            body += (value if isinstance(value, bytes) else value.encode()) + b"\r\n"
        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        answer = self.ask("POST", "/v1/audio/transcriptions", body + b"--x--\r\n", kind)
        self.run_out()
        return answer

    def test_transcription(self) -> None:
        """What was heard is told whole or token by token."""
        answer = self.form(model="demo", file=b"\0" * 40_000)
        whole = Transcription.model_validate_json(answer.body)
        self.assertEqual(whole.text, "I am demo and heard 40000 bytes of sound.")
        self.assertEqual(answer.json["usage"], {"type": "duration", "seconds": 2})
        stream = self.form(model="demo", file=b"", stream="true")
        *chunks, done, _ = stream.events
        self.assertEqual(done, "[DONE]")
        told = "".join(json.loads(chunk)["choices"][0]["delta"]["content"] for chunk in chunks)
        self.assertEqual(told, "I am demo and heard 0 bytes of sound.")
        self.assertEqual(self.form(model="demo").status, 400)
        self.assertEqual(self.form(model="nope", file=b"").status, 404)

    def test_key(self) -> None:
        """All of them ask for the key."""
        self.make(Settings(api_key="k"))
        for path in ("messages", "responses", "embeddings", "rerank", "score", "audio/transcriptions"):
            self.assertEqual(self.post({}, f"/v1/{path}").status, 401)


class WebSocketTests(DemoCase):
    def test_frames(self) -> None:
        """Frames of any length come back unmasked, a ping as a pong, and a close ends the connection."""
        for size, head in (
            (3, b"\x81\x03"),
            (200, b"\x81\x7e\x00\xc8"),
            (70_000, b"\x81\x7f" + (70_000).to_bytes(8)),
        ):
            plain = b"abc" * size
            echo = Echo()
            transport = StringTransport()
            echo.makeConnection(transport)
            masked = bytes(byte ^ b"mask"[place % 4] for place, byte in enumerate(plain[:size]))
            frame = bytes((head[0], head[1] | 0x80)) + head[2:] + b"mask" + masked
            for start in range(0, len(frame), 4096):
                echo.dataReceived(frame[start : start + 4096])
            self.assertEqual(transport.value(), head + plain[:size])
            transport.clear()
            echo.dataReceived(b"\x89\x80mask\x8a\x80mask\x88\x80mask")
            self.assertEqual(transport.value(), b"\x8a\x00\x88\x00")
            self.assertTrue(transport.disconnecting)

    def test_handshake(self) -> None:
        """/websocket wants a handshake."""
        self.assertEqual(self.ask("GET", "/websocket").status, 426)
