"""Bad input gets its typed error and a stable reason, and costs at most its sender."""

import asyncio
import random
import socket
import time
from contextlib import asynccontextmanager

import msgspec
import pytest

from secagg import http_api, limits
from secagg.access_token import issue_access_token
from tests.kits.service import (
    TASK,
    Device,
    Gone,
    current_sum,
    devices,
    finished,
    one_hot,
    run,
    served,
    spec,
)

SMALL = {  # a body has a deadline of its own, longer than that of its request's head
    "body_stall_s": 0.8,
    "body_min_rate": 50.0,
    "connection_header_s": 0.5,
}


def reason(answer):
    status, body = answer
    return status, msgspec.json.decode(body, type=http_api.Problem).reason


class Prober(Device):
    """A device that is opened by hand, to send anything at any time."""

    async def __aenter__(self):
        import aiohttp

        self.http = aiohttp.ClientSession()
        return self

    async def __aexit__(self, *_):
        await self.http.close()

    async def get(self, path, **arguments):
        return await self.request("GET", path, **arguments)


@pytest.fixture
async def server(tmp_path):
    async with served(tmp_path, spec()) as running:
        yield running


@pytest.fixture
async def strict(tmp_path):
    """A service that gives a body up after less than a second."""
    async with served(tmp_path, spec(), **SMALL) as running:
        yield running


@pytest.fixture
async def prober(server):
    async with Prober(server, 0, one_hot(0)) as opened:
        yield opened


ADVERTS = {
    "empty": (b"", 400, "frame-malformed"),
    "text": ("größe".encode("latin-1"), 400, "frame-malformed"),
    "json": (b'{"a": [1,', 400, "frame-malformed"),
    "too large": (bytes(limits.ADVERT_BYTES_MAX + 10_000), 413, "body-too-large"),
}


@pytest.mark.parametrize("name", ADVERTS)
async def test_bytes_that_are_no_advert_are_refused(prober, name):
    body, status, expected = ADVERTS[name]
    assert reason(await prober.request("POST", "/v1/adverts", data=body)) == (status, expected)


@pytest.mark.parametrize("damage", ["truncated", "version", "kind", "flipped", "other-device"])
async def test_damaged_adverts_are_refused(server, prober, damage):
    prober.stop_before = "advert"
    with pytest.raises(Gone):
        await prober.report_in()
    advert, sender = prober.advert, prober
    expected = (
        400,
        {
            "truncated": "frame-malformed",
            "version": "frame-version",
            "kind": "frame-kind",
            "flipped": "signature-invalid",
        }.get(damage),
    )
    at = advert.index(b"\x01\x01")  # version byte, kind byte
    match damage:
        case "truncated":
            advert = advert[:-30]
        case "version":
            advert = advert[:at] + b"\x09" + advert[at + 1 :]
        case "kind":
            advert = advert[: at + 1] + b"\x02" + advert[at + 2 :]
        case "flipped":
            advert = advert[:-1] + bytes([advert[-1] ^ 1])
        case "other-device":
            async with Prober(server, 1, one_hot(1)) as sender:
                answer = await sender.request("POST", "/v1/adverts", data=advert)
            assert reason(answer) == (403, "advert-not-yours")
            return
    assert reason(await sender.request("POST", "/v1/adverts", data=advert)) == expected


async def test_whatever_bytes_come_the_answer_is_a_problem_with_a_reason(prober):
    """A thousand damaged adverts: cut, flipped, spliced. None is taken, none breaks the service."""
    prober.stop_before = "advert"
    with pytest.raises(Gone):
        await prober.report_in()
    rng, advert = random.Random(1), prober.advert
    async with served_without_limits(prober):
        for _ in range(1_000):
            damaged = bytearray(advert[: rng.choice([len(advert), rng.randrange(len(advert))])])
            for _ in range(rng.randrange(1, 4)):
                if damaged:
                    at = rng.randrange(len(damaged))
                    damaged[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
            if bytes(damaged) == advert:
                continue
            status, body = await prober.request("POST", "/v1/adverts", data=bytes(damaged))
            problem = msgspec.json.decode(body, type=http_api.Problem)
            assert status in (400, 403, 404), (status, problem)
            assert problem.reason


@asynccontextmanager
async def served_without_limits(device):
    """The rate limit is another test's subject."""
    access = device.server.service.access
    rate, access._rate = access._rate, 1e9
    yield
    access._rate = rate


OPERATOR = {
    "not json": (b"{", 400, "body-malformed"),
    "not utf-8": (b'{"task": "\xff\xfe"}', 400, "body-malformed"),
    "unknown field": (b'{"task": "x", "colour": 1}', 400, "body-malformed"),
    "wrong type": (b'{"task": 7}', 400, "body-malformed"),
    "nan": (b'{"task": "x", "clip": NaN}', 400, "body-malformed"),
    "impossible": (b'{"task": "x", "algorithm": "sum", "privacy": "none"}', 422, "segments-wrong"),
    "deep": (b"[" * 100_000, 400, "body-malformed"),
}


@pytest.mark.parametrize("name", OPERATOR)
async def test_bad_task_files_are_refused(server, name):
    import aiohttp

    body, status, expected = OPERATOR[name]
    headers = {"Authorization": "Bearer operator-token-of-the-tests"}
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{server.url}/v1/operator/tasks", data=body, headers=headers) as response,
    ):
        assert reason((response.status, await response.read())) == (status, expected)


async def test_who_may_call_what(server, prober):
    async def bare(path, token=None):
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        async with prober.http.get(server.url + path, headers=headers) as response:
            return reason((response.status, await response.read()))

    offer = f"/v1/tasks/{TASK}/offer"
    assert await bare(offer) == (401, "token-missing")
    assert await bare(offer, "garbage") == (401, "token-malformed")
    audience = server.service.core.keys.task_public
    now = time.time()
    old = issue_access_token(prober.seed, prober.certificate, audience, now - 4_000)
    assert await bare(offer, old) == (401, "token-expired")
    elsewhere = issue_access_token(prober.seed, prober.certificate, bytes(32), now)
    assert await bare(offer, elsewhere) == (401, "token-signature")
    assert await bare("/v1/operator/tasks") == (401, "token-missing")
    assert await bare("/v1/operator/tasks", await prober.token()) == (403, "operator-token")
    assert reason(await prober.get("/v1/tasks/none/offer")) == (404, "not-found")
    assert reason(await prober.get(f"/v1/models/{'0' * 64}")) == (404, "not-found")
    assert reason(await prober.get(f"/v1/sessions/{'0' * 64}/messages")) == (404, "not-found")
    assert reason(await prober.get("/v1/nowhere")) == (404, "not-found")
    assert reason(await prober.request("DELETE", "/v1/server")) == (405, "method-not-allowed")
    for bad in ("after=-1", "after=x", "wait_s=nan", "wait_s=inf", "wait_s=-1"):
        await prober.report_in()
        answer = await prober.get(f"{prober.session}/messages?{bad}")
        assert reason(answer) == (400, "query-malformed")


async def test_a_session_answers_only_its_own_device(server, prober):
    await prober.report_in()
    async with Prober(server, 1, one_hot(1)) as other:
        assert reason(await other.get(f"{prober.session}/messages")) == (403, "session-not-yours")
        answer = await other.request("POST", f"{prober.session}/messages", data=b"x")
        assert reason(answer) == (403, "session-not-yours")
    answer = await prober.request("POST", f"{prober.session}/messages", data=b"x")
    assert reason(answer) == (409, "session-waiting")


async def test_a_session_in_an_open_cohort_answers_only_its_own_device(server):
    fleet = devices(server, 4)
    asked = []

    async def others_try(name):
        if name != "deals" or asked:
            return
        assert server.service.driver.member(fleet[0].session.rpartition("/")[2]) is not None
        for other in fleet[1:]:
            for method, path in (("GET", "messages"), ("POST", "messages"), ("GET", "vector")):
                answer = await other.request(method, f"{fleet[0].session}/{path}")
                asked.append(reason(answer))

    fleet[0].hold = others_try
    assert finished(await run(fleet)) == 4
    assert asked == [(403, "session-not-yours")] * 9
    for device in fleet:  # its cohort has ended: not in memory any more, yet still its own
        assert server.service.driver.member(device.session.rpartition("/")[2]) is None


BODIES = {
    "too long": (lambda p: p + b"x", 413, "body-too-large"),
    "flipped": (lambda p: p[:-1] + bytes([p[-1] ^ 1]), 400, "vector-digest"),
    "other bytes": (lambda p: bytes(len(p)), 400, "vector-digest"),
}


@pytest.mark.parametrize("name", BODIES)
async def test_a_bad_vector_is_refused_and_may_be_sent_again(server, name):
    """Retries after a damaged transfer do not harm: the right vector counts once."""
    change, status, expected = BODIES[name]
    fleet = devices(server, 4)
    bad, upload = fleet[1], fleet[1].upload

    async def upload_bad(payload):
        path = f"{bad.session}/vector?offset=0"
        answer = await bad.request("PUT", path, data=change(payload))
        assert reason(answer) == (status, expected)
        await upload(payload)

    bad.upload = upload_bad
    assert finished(await run(fleet)) == 4
    assert (await current_sum(server))[:5].tolist() == [1, 1, 1, 1, 0]


async def test_offsets_must_continue_and_headers_come_first(server):
    fleet = devices(server, 4)
    odd, upload, post = fleet[1], fleet[1].upload, fleet[1].post

    async def post_after_probing(message):
        if not odd.payload:
            answer = await odd.request("PUT", f"{odd.session}/vector?offset=0", data=b"x")
            assert reason(answer) == (409, "upload-unannounced")
        return await post(message)

    async def upload_oddly(payload):
        path = f"{odd.session}/vector?offset="
        assert (await odd.request("PUT", path + "0", data=payload[:30]))[0] == 200
        answer = await odd.request("PUT", path + "50", data=payload[50:])
        assert reason(answer) == (409, "upload-offset")
        await upload(payload)

    odd.upload, odd.post = upload_oddly, post_after_probing
    assert finished(await run(fleet)) == 4
    assert (await current_sum(server))[:5].tolist() == [1, 1, 1, 1, 0]


MESSAGES = {
    "garbage": (b"\x00garbage\xff", 400, "frame-malformed"),
    "empty": (b"", 400, "frame-malformed"),
}


@pytest.mark.parametrize("name", MESSAGES)
async def test_messages_that_break_the_rules_harm_nobody(server, name):
    body, status, expected = MESSAGES[name]
    fleet = devices(server, 4)
    bad, post = fleet[2], fleet[2].post

    async def post_bad_first(message):
        answer = await bad.request("POST", f"{bad.session}/messages", data=body)
        assert reason(answer) == (status, expected)
        other = fleet[0].sent[-1] if fleet[0].sent else body
        answer = await bad.request("POST", f"{bad.session}/messages", data=other)
        assert answer[0] == 400
        return await post(message)

    bad.post = post_bad_first
    assert finished(await run(fleet)) == 4
    assert (await current_sum(server))[:5].tolist() == [1, 1, 1, 1, 0]


async def raw(server, head: str, body: bytes) -> bytes:
    """Send bytes over a plain connection and read what comes until it is closed."""
    host, port = server.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(head.encode() + b"\r\n\r\n" + body)
    await writer.drain()
    answer = await reader.readuntil(b"\r\n\r\n")
    rest = await reader.read(2_000)
    writer.close()
    return answer + rest


async def test_a_stalled_body_is_given_up_after_its_deadline(strict):
    async with Prober(strict, 0, one_hot(0)) as prober:
        head = (
            "POST /v1/adverts HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n"
            f"Authorization: Bearer {await prober.token()}"
        )
        answer = await raw(strict, head, b"only this")
    assert b" 408 " in answer.split(b"\r\n")[0]
    assert b"body-stalled" in answer


async def test_a_body_that_trickles_is_given_up_too(strict):
    async with Prober(strict, 0, one_hot(0)) as prober:
        token = await prober.token()
    host, port = strict.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = "POST /v1/adverts HTTP/1.1\r\nHost: x\r\nContent-Length: 4000\r\n"
    writer.write((head + f"Authorization: Bearer {token}\r\n\r\n").encode())
    answer = asyncio.create_task(reader.read(4_000))
    end = time.monotonic() + 20
    while not answer.done() and time.monotonic() < end:
        writer.write(b"x")  # each byte is in time; all of them are too slow
        await asyncio.wait([answer], timeout=0.1)
    assert b"body-too-slow" in await answer
    writer.close()


async def test_a_vector_that_stalls_costs_only_its_sender_and_can_be_resumed(strict):
    fleet = devices(strict, 4)
    slow, resumed = fleet[3], fleet[2]

    def stalling(device, then):
        async def stall(payload):
            head = (
                f"PUT {device.session}/vector?offset=0 HTTP/1.1\r\nHost: x\r\n"
                f"Content-Length: {len(payload)}\r\nAuthorization: Bearer {await device.token()}"
            )
            assert b"body-stalled" in await raw(strict, head, payload[:20])
            _, body = await device.request("GET", f"{device.session}/vector")
            state = msgspec.json.decode(body, type=http_api.UploadState)
            assert (state.received_bytes, state.complete) == (20, False)  # what came is kept
            await then(payload)

        return stall

    async def vanish(_):
        raise Gone

    slow.upload = stalling(slow, vanish)
    resumed.upload = stalling(resumed, resumed.upload)
    assert finished(await run(fleet)) == 3
    assert (await current_sum(strict))[:5].tolist() == [1, 1, 1, 0, 0]


async def test_a_device_that_calls_too_often_is_told_to_wait(tmp_path):
    async with (
        served(tmp_path, spec(), requests_per_s=1.0, request_burst=5) as server,
        Prober(server, 0, one_hot(0)) as eager,
        Prober(server, 1, one_hot(1)) as calm,
    ):
        answers = [await eager.get(f"/v1/tasks/{TASK}/offer") for _ in range(8)]
        assert reason(answers[-1]) == (429, "rate-limited")
        assert (await calm.get(f"/v1/tasks/{TASK}/offer"))[0] == 200


async def test_connections_that_send_nothing_do_not_stop_a_cohort(server):
    host, port = server.url.removeprefix("http://").split(":")
    idle = [socket.create_connection((host, int(port))) for _ in range(50)]
    assert finished(await run(devices(server, 4))) == 4
    for connection in idle:
        connection.close()
